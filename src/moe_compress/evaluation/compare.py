"""Compare two models on the same items: what was kept, what was lost, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb, sqrt
from statistics import NormalDist

import numpy as np

from moe_compress.errors import EvaluationError
from moe_compress.types import EvaluationResult, FloatArray, ItemResult, TaskComparison

Interval = tuple[float, float]


def compare_results(
    baseline: EvaluationResult,
    candidate: EvaluationResult,
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> dict[str, TaskComparison]:
    """Return task -> comparison, for every task of the baseline.

    Args:
        baseline: the model before compression.
        candidate: the model after it.
        seed: of the bootstrap.
        num_resamples: bootstrap resamples.
        level: of all intervals.

    Raises:
        EvaluationError: if the two did not answer the same items.
    """
    if set(baseline.tasks) != set(candidate.tasks):
        raise EvaluationError(
            f"baseline was evaluated on {', '.join(sorted(baseline.tasks))} and candidate on "
            f"{', '.join(sorted(candidate.tasks))}; evaluate both on the same evaluate.tasks"
        )
    return {
        task: compare_items(
            baseline.items_of(task),
            candidate.items_of(task),
            seed=seed,
            num_resamples=num_resamples,
            level=level,
        )
        for task in baseline.tasks
    }


def pool_items(result: EvaluationResult, targets: Sequence[str]) -> tuple[ItemResult, ...]:
    """Return the items of the targets' own tasks and of all public benchmarks as those of one task, `pooled`.

    Each item counts alike, so that large benchmarks weigh more. Empty where there is only one of them.
    """
    asked = [item for item in result.items if item.task in targets or item.question]
    if len({item.task for item in asked}) < 2:
        return ()
    return tuple(replace(item, task="pooled", item=f"{item.task} {item.item}") for item in asked)


def compare_items(
    baseline: tuple[ItemResult, ...],
    candidate: tuple[ItemResult, ...],
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> TaskComparison:
    """Return the comparison on one task's items; see `compare_results`.

    Raises:
        EvaluationError: if the items are not the same.
    """
    cells = _count_cells(baseline, candidate)
    num_items = int(cells.sum())
    both, lost, gained, _ = (int(cell) for cell in cells)
    chance = float(np.mean([item.chance for item in baseline]))
    differences, shares = _statistics(cells[None] / num_items, chance)
    # Items fall into four cells, so resampling items is drawing how many fall into each.
    resampled = np.random.default_rng(seed).multinomial(num_items, cells / num_items, num_resamples)
    resampled_differences, resampled_shares = _statistics(resampled / num_items, chance)
    difference_low, difference_high = _percentile_interval(resampled_differences, level)
    share_low, share_high = _percentile_interval(resampled_shares, level)
    return TaskComparison(
        task=baseline[0].task,
        num_items=num_items,
        chance=chance,
        baseline_accuracy=(both + lost) / num_items,
        candidate_accuracy=(both + gained) / num_items,
        difference=float(differences[0]),
        difference_low=difference_low,
        difference_high=difference_high,
        share_kept=float(shares[0]),
        share_kept_low=share_low,
        share_kept_high=share_high,
        gained=gained,
        lost=lost,
        p_value=mcnemar_p(lost, gained),
        noise=resampling_noise((both + lost) / num_items, num_items, level),
    )


def wilson_interval(num_right: int, num_items: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927), within 0..1.

    `(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`, `z` the normal quantile of the level.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = num_right / num_items
    centre = share + z**2 / (2 * num_items)
    margin = z * sqrt(share * (1 - share) / num_items + z**2 / (4 * num_items**2))
    scale = 1 + z**2 / num_items
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def resampling_noise(accuracy: float, num_items: int, level: float = 0.95) -> float:
    """Return by how much a model's accuracy differs between two draws of items: `z sqrt(2 p (1 - p) / n)`.

    This is what a comparison on two different sets of items could not tell from nothing.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    return z * sqrt(2 * accuracy * (1 - accuracy) / num_items)


def mcnemar_p(num_lost: int, num_gained: int) -> float:
    """Return McNemar's exact p: `min(1, 2 P(X <= min(lost, gained)))`, `X ~ Binomial(lost + gained, 1/2)`."""
    flips = num_lost + num_gained
    tail = sum(comb(flips, count) for count in range(min(num_lost, num_gained) + 1))
    return min(1.0, float(2 * tail / 2**flips))


def _count_cells(baseline: tuple[ItemResult, ...], candidate: tuple[ItemResult, ...]) -> FloatArray:
    """Return how many items both, only the baseline, only the candidate, neither answer rightly: `[4]`."""
    others = {item.item: item for item in candidate}
    first = [(item.item, item.answer) for item in baseline]
    if sorted(first) != sorted((item.item, item.answer) for item in candidate):
        different = set(first) ^ {(item.item, item.answer) for item in candidate}
        raise EvaluationError(
            f"baseline and candidate answered different items of '{baseline[0].task}' "
            f"({len(baseline)} and {len(candidate)}{', first ' + min(different)[0] if different else ''}); "
            "evaluate both with the same file, limit and seed"
        )
    right_1 = np.array([item.is_correct for item in baseline])
    right_2 = np.array([others[item.item].is_correct for item in baseline])
    cells = (right_1 & right_2, right_1 & ~right_2, ~right_1 & right_2, ~right_1 & ~right_2)
    return np.array([cell.sum() for cell in cells], dtype=np.float64)


def _statistics(cells_R4: FloatArray, chance: float) -> tuple[FloatArray, FloatArray]:
    """Return difference and share kept, each `[R]`, of shares of items in the four cells."""
    before = cells_R4[:, 0] + cells_R4[:, 1]
    after = cells_R4[:, 0] + cells_R4[:, 2]
    above_chance = np.where(before > chance, before - chance, np.nan)
    return after - before, (after - chance) / above_chance


def _percentile_interval(values: FloatArray, level: float) -> Interval:
    """Return the percentile interval; a value that is not defined may be anything: it counts at both ends."""
    lowest = np.where(np.isnan(values), -np.inf, values)
    highest = np.where(np.isnan(values), np.inf, values)
    low = np.quantile(lowest, (1 - level) / 2, method="inverted_cdf")
    high = np.quantile(highest, (1 + level) / 2, method="inverted_cdf")
    return float(low), float(high)
