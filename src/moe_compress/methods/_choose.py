"""From scores to a plan: keep the highest, breaking ties without regard to expert ids."""

import numpy as np

from moe_compress.methods._budget import experts_to_keep, share_out
from moe_compress.methods._importance import share_by_importance
from moe_compress.types import (
    Budget,
    CompressionPlan,
    ExpertGroup,
    FloatArray,
    MoELayout,
    RouterGroups,
    pruning_groups,
)


def plan_scores(
    method: str,
    scores_LE: FloatArray,
    layout: MoELayout,
    budget: Budget,
    seed: int,
    router_groups: RouterGroups,
    worth_L: FloatArray | None = None,
) -> CompressionPlan:
    """Return the plan that keeps the highest scores the budget and the router's groups have room for.

    Args are those of `choose_groups`, and what becomes of the router's groups.

    Raises:
        ParameterError: if the layout cannot meet the budget.
    """
    limits = layout.flattened if router_groups == "flatten" else layout
    groups = choose_groups(scores_LE, limits, budget, seed, worth_L)
    return CompressionPlan(layout, groups, method, scores_LE, router_groups=router_groups)


def choose_groups(
    scores_LE: FloatArray, layout: MoELayout, budget: Budget, seed: int, worth_L: FloatArray | None = None
) -> tuple[tuple[ExpertGroup, ...], ...]:
    """Return one group per kept expert and layer: each layer's highest scores (EASY-EP's top-M).

    A `per_layer` budget keeps the same number of each layer; a `global` one compares the experts' shares of
    their layers' scores over all layers; one by `importance` keeps more of layers that are worth more. A
    router that groups experts by position keeps the same number of each of its groups.

    Args:
        scores_LE: higher is better.
        layout: the model's layout.
        budget: how many experts stay.
        seed: orders equal scores.
        worth_L: what each layer is worth to a budget by `importance`; None for what its scores add up to.

    Raises:
        ParameterError: if the layout cannot meet the budget.
    """
    rows = [scores_LE[row, :experts] for row, experts in enumerate(layout.num_experts)]
    order = [
        take_in_turn(rank(row, layer, seed), layout.num_groups)
        for row, layer in zip(rows, layout.layers, strict=True)
    ]
    if budget.scope == "global":
        sorted_shares = [share_of_layer(row[best]) for row, best in zip(rows, order, strict=True)]
        keep = share_out(sorted_shares, budget, layout, seed)
    elif budget.scope == "importance":
        worth_L = layer_worth(scores_LE, layout) if worth_L is None else worth_L
        keep = share_by_importance(worth_L, budget, layout, seed)
    else:
        keep = experts_to_keep(budget, layout)
    return tuple(pruning_groups(best[:count].tolist()) for best, count in zip(order, keep, strict=True))


def rank(scores_E: FloatArray, layer: int, seed: int) -> np.ndarray:
    """Return expert ids from highest to lowest score; equal scores are ordered by a seeded draw."""
    tie_break_E = np.random.default_rng([seed, layer]).permutation(len(scores_E))
    return np.lexsort((tie_break_E, -scores_E))


def take_in_turn(best_E: np.ndarray, num_groups: int) -> np.ndarray:
    """Return a ranking in which every group's best come first, then every group's second best, and so on.

    Cut after any multiple of `num_groups`, it keeps the same number of each group, the highest of that group.
    """
    home_E = best_E // (len(best_E) // num_groups)
    order = np.argsort(home_E, kind="stable")
    turn_E = np.empty_like(order)
    turn_E[order] = np.arange(len(best_E)) % (len(best_E) // num_groups)
    return best_E[np.argsort(turn_E, kind="stable")]


def share_of_layer(scores_E: FloatArray) -> FloatArray:
    """Return each expert's share of its layer's summed score; equal shares in a layer without any score."""
    total = np.sort(scores_E).sum()  # sorted, so that the order of the experts does not touch the last digit
    return scores_E / total if total > 0 else np.full(len(scores_E), 1 / len(scores_E))


def layer_worth(scores_LE: FloatArray, layout: MoELayout) -> FloatArray:
    """Return what each layer's scores add up to, float64 `[L]`, to the last digit whatever the experts' order."""
    rows = zip(scores_LE, layout.num_experts, strict=True)
    return np.array([np.sort(scores_E[:experts]).sum() for scores_E, experts in rows])


def layer_shares(scores_LE: FloatArray, layout: MoELayout) -> FloatArray:
    """Return each expert's share of its layer's score, float64 `[L, E]`; layers then compare."""
    share_LE = np.zeros_like(scores_LE, dtype=np.float64)
    for row, experts in enumerate(layout.num_experts):
        share_LE[row, :experts] = share_of_layer(scores_LE[row, :experts])
    return share_LE
