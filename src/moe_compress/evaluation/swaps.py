"""Better a pruning plan by swaps of one kept against one dropped expert: what brings KL to the base down stays."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from moe_compress.atomic import write_atomically
from moe_compress.evaluation.divergence import BasePredictions
from moe_compress.evaluation.masked import check_plan, mask_experts
from moe_compress.types import CompressionPlan, pruning_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kept = tuple[tuple[int, ...], ...]
Measure = Callable[[Kept], float]

_SAVE_SECONDS = 5.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Climb:
    """What a hill-climb found.

    Attributes:
        kept: per layer the experts to keep, ascending.
        kl_before: mean KL of the plan it started from, in nats per token.
        kl_after: that of `kept`.
        num_tried: swaps measured.
        num_accepted: swaps that stayed.
    """

    kept: Kept
    kl_before: float
    kl_after: float
    num_tried: int
    num_accepted: int


def refine_by_swaps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    plan: CompressionPlan,
    *,
    swaps: int,
    seconds: float | None = None,
    seed: int = 0,
    record: Path | None = None,
) -> CompressionPlan:
    """Return a plan of the same budget whose KL to the base on the texts is no higher.

    Args:
        model: the base model, of a maskable family.
        tokenizer: its tokenizer.
        texts: the domain's calibration text.
        plan: a plan that only prunes.
        swaps: swaps to try at most; each costs one forward pass over the texts.
        seconds: stop after about this many; None for no such limit.
        seed: orders what scores do not.
        record: where what was measured is kept, so that a climb that was stopped goes on, and one with a larger
            budget does too; it must be the same model, texts, plan and seed.

    Raises:
        PlanError: if the plan merges, or gives up groups that the base's router has.
        UnsupportedModelError: if the family's experts cannot be masked.
    """
    check_plan(plan)
    base = BasePredictions(model, tokenizer, {"calibration": texts})

    def measure(kept: Kept) -> float:
        with mask_experts(model, kept):
            return base.compare(model)["calibration"].kl

    found = climb(plan, Measured(measure, record), swaps, seconds, seed)
    logger.info(
        "swaps: KL to the base %.4f -> %.4f nats per token on %d tokens of calibration text, %d of %d swaps stayed",
        *(found.kl_before, found.kl_after, base.num_tokens, found.num_accepted, found.num_tried),
    )
    facts = {
        "refined_from": plan.method,
        "swaps_tried": str(found.num_tried),
        "swaps_kept": str(found.num_accepted),
        "swaps_tokens": str(base.num_tokens),
        "swaps_seed": str(seed),
        "swaps_kl": f"{found.kl_before:.6g} -> {found.kl_after:.6g}",
    }
    return replace(
        plan,
        groups=tuple(map(pruning_groups, found.kept)),
        method=f"{plan.method}+swaps",
        provenance={**plan.provenance, **facts},
    )


class Measured:
    """What was measured, in order: climbing again over what an earlier run wrote down leads to the same place.

    Attributes:
        values: what the measure gave, call by call.
        seconds: how long it took in all.
    """

    def __init__(self, measure: Measure, file: Path | None = None) -> None:
        self._measure, self._file = measure, file
        known = json.loads(file.read_text()) if file is not None and file.is_file() else {}
        self.values: list[float] = known.get("kl", [])
        self.seconds: float = known.get("seconds", 0.0)
        self._place, self._saved = 0, time.perf_counter()

    def __call__(self, kept: Kept) -> float:
        """Return what keeping these experts gives, measured or remembered."""
        if self._place == len(self.values):
            started = time.perf_counter()
            self.values.append(self._measure(kept))
            self.seconds += time.perf_counter() - started
            if time.perf_counter() - self._saved > _SAVE_SECONDS:
                self.save()
        self._place += 1
        return self.values[self._place - 1]

    @property
    def is_new(self) -> bool:
        """Whether the next value has to be measured."""
        return self._place == len(self.values)

    def save(self) -> None:
        """Write down what was measured so far."""
        if self._file is not None:
            write_atomically(self._file, json.dumps({"seconds": self.seconds, "kl": self.values}).encode())
        self._saved = time.perf_counter()


def climb(
    plan: CompressionPlan, measure: Measured, swaps: int, seconds: float | None = None, seed: int = 0
) -> Climb:
    """Try swaps until the budget is spent or a whole round of them brings nothing.

    Args:
        plan: where to start.
        measure: kept experts -> what to bring down.
        swaps: swaps to try at most.
        seconds: of measuring, over all runs that share a record; None for no limit.
        seed: orders what scores do not.
    """
    order, kept = _Order(plan, seed), plan.kept
    before = best = measure(kept)
    tried = accepted = 0
    each = measure.seconds / len(measure.values)
    logger.info("swaps: at most %d at %.2f s each, about %.0f s in all", swaps, each, swaps * each)
    with tqdm(total=swaps, desc="swaps", unit="swap") as bar:
        while tried < swaps and (swap := order.next(kept)) is not None:
            if seconds is not None and measure.is_new and measure.seconds >= seconds:
                break
            proposal = _exchange(kept, *swap)
            value = measure(proposal)
            tried += 1
            if value < best:
                kept, best, accepted = proposal, value, accepted + 1
                order.accept(*swap)
            bar.update()
            bar.set_postfix_str(f"KL {best:.4f} from {before:.4f}, {accepted} stayed")
    measure.save()
    return Climb(kept, before, best, tried, accepted)


def _exchange(kept: Kept, row: int, out: int, new: int) -> Kept:
    changed = tuple(sorted({*kept[row], new} - {out}))
    return (*kept[:row], changed, *kept[row + 1 :])


class _Order:
    """Which swap comes next: layers in turn, in each the experts that had the fewest turns, nearest the cut first.

    Experts are ranked by the plan's scores, in a seeded order where those are equal or missing. Of the pairs that
    were not tried, the one comes whose two had the fewest turns together, and of these the one with the fewest
    ranks between: near the cut scores say least, and yet every expert is soon asked about. A swap that stays
    exchanges the two ranks.
    After a round in which something stayed, every pair may be tried again. Pairs are of one router group, so that
    groups stay balanced.
    """

    def __init__(self, plan: CompressionPlan, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._ranks, self._noise, self._homes = [], [], []
        for row, experts in enumerate(plan.layout.num_experts):
            scores_E = np.zeros(experts) if plan.scores is None else plan.scores[row, :experts]
            best_E = np.lexsort((generator.permutation(experts), -scores_E))
            rank_E = np.empty(experts)
            rank_E[best_E] = np.arange(experts)
            self._ranks.append(rank_E)
            self._noise.append(generator.random((experts, experts)))
            self._homes.append(np.arange(experts) // (experts // plan.layout.num_groups))
        self._tried = [np.zeros_like(noise, dtype=bool) for noise in self._noise]
        self._turns = [np.zeros(experts) for experts in plan.layout.num_experts]
        self._row, self._has_new = 0, False

    def next(self, kept: Kept) -> tuple[int, int, int] | None:
        """Return the layer's position, the expert to drop and the one to keep instead; None when no swap helps."""
        for _ in kept:
            row = self._row
            self._row = (row + 1) % len(kept)
            pair = self._nearest(row, kept[row])
            if pair is not None:
                self._tried[row][pair] = True
                self._turns[row][list(pair)] += 1
                return row, *pair
        if not self._has_new:
            return None
        self._has_new = False
        for tried in self._tried:
            tried[:] = False
        return self.next(kept)

    def accept(self, row: int, out: int, new: int) -> None:
        """Learn that a swap stayed."""
        rank_E = self._ranks[row]
        rank_E[[out, new]] = rank_E[[new, out]]
        self._tried[row][new, out] = True
        self._has_new = True

    def _nearest(self, row: int, kept: Sequence[int]) -> tuple[int, int] | None:
        rank_E, home_E = self._ranks[row], self._homes[row]
        stay = np.array(kept)
        gone = np.setdiff1d(np.arange(len(rank_E)), stay)
        grid = np.ix_(stay, gone)
        turns_E = self._turns[row] * len(rank_E)
        distance = rank_E[gone] - rank_E[stay, None] + self._noise[row][grid] + turns_E[gone] + turns_E[stay, None]
        distance[self._tried[row][grid] | (home_E[stay, None] != home_E[gone])] = np.inf
        if not np.isfinite(distance).any():
            return None
        first, second = np.unravel_index(distance.argmin(), distance.shape)
        return int(stay[first]), int(gone[second])
