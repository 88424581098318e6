"""Were there enough demonstrations: one method's choice on two halves of them, and on the first few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe_compress.types import Agreement, CompressionPlan, ExpertStatistics, FloatArray

Planner = Callable[[ExpertStatistics], CompressionPlan]


def compare_halves(statistics: ExpertStatistics, make_plan: Planner) -> Agreement:
    """Return how far the choices of two halves agree, and those of the first few with that of all.

    Args:
        statistics: one domain's sums, kept apart by demonstrations.
        make_plan: the choice, of experts with scores.

    Raises:
        StatisticsError: if the sums were not kept apart, or the choice needs one that was not.
    """
    one, other = (make_plan(half) for half in statistics.halves())
    layout, ends = statistics.layout, statistics.parts.ends if statistics.parts else ()
    plans = {end: make_plan(statistics.of_first(end)) for end in ends}
    whole = plans[ends[-1]]
    return Agreement(
        layers=layout.layers,
        jaccard=tuple(map(jaccard, one.kept, other.kept)),
        spearman=_correlate_scores(one, other),
        curve={end: _share_of(whole, plan) for end, plan in plans.items()},
        between=tuple(
            tuple(float(np.mean(_share_of(row, column))) for column in plans.values()) for row in plans.values()
        ),
        chance=float(np.mean([len(k) / count for k, count in zip(whole.kept, layout.num_experts, strict=True)])),
    )


def jaccard(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Return what two sets share of what they have together, in 0..1."""
    return len({*one} & {*other}) / len({*one, *other})


def spearman(one_E: FloatArray, other_E: FloatArray) -> float:
    """Return the correlation of two scores' ranks, ties at their mean rank; NaN where one has no order at all."""
    from scipy.stats import rankdata  # most of a second, which every command would wait for

    ranks = [rankdata(scores_E) - (len(scores_E) + 1) / 2 for scores_E in (one_E, other_E)]
    spread = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float(ranks[0] @ ranks[1] / spread) if spread > 0 else float("nan")


def _correlate_scores(one: CompressionPlan, other: CompressionPlan) -> tuple[float, ...]:
    if one.scores is None or other.scores is None:
        return (float("nan"),) * len(one.layout.layers)
    rows = zip(one.scores, other.scores, one.layout.num_experts, strict=True)
    return tuple(spearman(a_E[:experts], b_E[:experts]) for a_E, b_E, experts in rows)


def _share_of(whole: CompressionPlan, plan: CompressionPlan) -> tuple[float, ...]:
    """Return per layer the share of the whole's kept experts that the plan keeps too."""
    pairs = zip(whole.kept, plan.kept, strict=True)
    return tuple(len({*kept} & {*others}) / len(kept) for kept, others in pairs)
