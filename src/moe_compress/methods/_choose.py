"""From scores to a plan: keep the highest of each layer, breaking ties without regard to expert ids."""

import numpy as np

from moe_compress.errors import ParameterError
from moe_compress.types import (
    Budget,
    CompressionPlan,
    ExpertStatistics,
    FloatArray,
    MoELayout,
    pruning_groups,
)


def experts_to_keep(budget: Budget, layout: MoELayout) -> tuple[int, ...]:
    """Return how many experts each layer keeps, length L.

    Raises:
        ParameterError: if a layer would keep fewer than the router picks, or more than it has.
    """
    return tuple(
        _check(_count(budget, experts), layer, experts, layout.top_k)
        for layer, experts in zip(layout.layers, layout.num_experts, strict=True)
    )


def _count(budget: Budget, num_experts: int) -> int:
    if budget.experts_per_layer is not None:
        return budget.experts_per_layer
    return num_experts - int(num_experts * (budget.fraction_dropped or 0.0) + 1e-9)


def _check(keep: int, layer: int, num_experts: int, top_k: int) -> int:
    if keep < top_k:
        raise ParameterError(
            f"layer {layer} would keep {keep} experts, but the router picks top_k={top_k} per token; "
            f"keep at least {top_k} (select.budget)"
        )
    if keep > num_experts:
        raise ParameterError(
            f"layer {layer} would keep {keep} experts, but it has {num_experts}; "
            f"keep at most {num_experts} (select.budget)"
        )
    return keep


def keep_top(
    method: str, scores_LE: FloatArray, statistics: ExpertStatistics, budget: Budget, seed: int
) -> CompressionPlan:
    """Return the plan that keeps each layer's highest scores (EASY-EP's top-M of each layer)."""
    layout = statistics.layout
    keep = experts_to_keep(budget, layout)
    groups = tuple(
        pruning_groups(rank(scores_LE[row, :experts], layer, seed)[: keep[row]].tolist())
        for row, (layer, experts) in enumerate(zip(layout.layers, layout.num_experts, strict=True))
    )
    return CompressionPlan(layout, groups, method, scores_LE, statistics.provenance)


def rank(scores_E: FloatArray, layer: int, seed: int) -> np.ndarray:
    """Return expert ids from highest to lowest score; equal scores are ordered by a seeded draw."""
    tie_break_E = np.random.default_rng([seed, layer]).permutation(len(scores_E))
    return np.lexsort((tie_break_E, -scores_E))
