"""From scores to a plan: keep the highest, breaking ties without regard to expert ids."""

import numpy as np

from moe_compress.methods._budget import experts_to_keep, share_out
from moe_compress.types import (
    Budget,
    CompressionPlan,
    ExpertGroup,
    ExpertStatistics,
    FloatArray,
    MoELayout,
    pruning_groups,
)


def keep_top(
    method: str, scores_LE: FloatArray, statistics: ExpertStatistics, budget: Budget, seed: int
) -> CompressionPlan:
    """Return the plan that keeps the highest scores the budget has room for."""
    groups = choose_groups(scores_LE, statistics.layout, budget, seed)
    return CompressionPlan(statistics.layout, groups, method, scores_LE, statistics.provenance)


def choose_groups(
    scores_LE: FloatArray, layout: MoELayout, budget: Budget, seed: int
) -> tuple[tuple[ExpertGroup, ...], ...]:
    """Return one group per kept expert and layer: each layer's highest scores (EASY-EP's top-M).

    A `per_layer` budget keeps the same number of each layer; a `global` one compares the experts' shares of
    their layers' scores over all layers.

    Raises:
        ParameterError: if the layout cannot meet the budget.
    """
    rows = [scores_LE[row, :experts] for row, experts in enumerate(layout.num_experts)]
    order = [rank(row, layer, seed) for row, layer in zip(rows, layout.layers, strict=True)]
    if budget.scope == "global":
        sorted_shares = [share_of_layer(row[best]) for row, best in zip(rows, order, strict=True)]
        keep = share_out(sorted_shares, budget, layout, seed)
    else:
        keep = experts_to_keep(budget, layout)
    return tuple(pruning_groups(best[:count].tolist()) for best, count in zip(order, keep, strict=True))


def rank(scores_E: FloatArray, layer: int, seed: int) -> np.ndarray:
    """Return expert ids from highest to lowest score; equal scores are ordered by a seeded draw."""
    tie_break_E = np.random.default_rng([seed, layer]).permutation(len(scores_E))
    return np.lexsort((tie_break_E, -scores_E))


def share_of_layer(scores_E: FloatArray) -> FloatArray:
    """Return each expert's share of its layer's summed score; equal shares in a layer without any score."""
    total = np.sort(scores_E).sum()  # sorted, so that the order of the experts does not touch the last digit
    return scores_E / total if total > 0 else np.full(len(scores_E), 1 / len(scores_E))
