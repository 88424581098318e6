"""C-Prune's two stages and a budget: how many clusters the first leaves, and which of them the second keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from moe_compress.errors import ParameterError
from moe_compress.methods._budget import experts_to_keep, hand_out, layer_bounds, step_of, total_to_keep
from moe_compress.methods._parameters import MethodParameters
from moe_compress.types import Budget, FloatArray, MoELayout

_ROUNDING = 1e-9


class Rates(MethodParameters):
    """How much each of C-Prune's stages takes; Table 1 of its paper has 0.1 and 0.1.

    Attributes:
        follow: `budget`: the run's budget says how many experts go, met exactly, and the rates how the stages
            share them. `rates`: the rates say how many go; of the budget only scope, multiple and a layer's
            bounds are read.
        layer_rate: share of a layer's experts that the first stage takes.
        global_rate: share of what is left over all layers that the second stage takes.
    """

    layer_rate: float = Field(0.1, ge=0, lt=1)
    global_rate: float = Field(0.1, ge=0, lt=1)
    follow: Literal["budget", "rates"] = "budget"


def clusters_to_leave(rates: Rates, budget: Budget, layout: MoELayout) -> tuple[int, ...]:
    """Return how many clusters the stage inside the layers leaves in each, length L.

    Raises:
        ParameterError: if the layout cannot meet the budget.
    """
    step = step_of(budget, layout)
    floors, _ = layer_bounds(budget, layout)
    dropped_L = _dropped_first(rates, budget, layout)
    return tuple(
        min(experts, max(floor, -(-(experts - dropped) // step) * step))
        for experts, floor, dropped in zip(layout.num_experts, floors, dropped_L, strict=True)
    )


def _dropped_first(rates: Rates, budget: Budget, layout: MoELayout) -> list[int]:
    if rates.follow == "rates":
        return [round(rates.layer_rate * experts) for experts in layout.num_experts]
    both = rates.layer_rate + (1 - rates.layer_rate) * rates.global_rate
    first = rates.layer_rate / both if both else 0.0
    if budget.scope == "per_layer":
        keep_L = experts_to_keep(budget, layout)
        gone_L = [float(experts - keep) for experts, keep in zip(layout.num_experts, keep_L, strict=True)]
    else:
        gone = 1 - total_to_keep(budget, layout) / sum(layout.num_experts)
        gone_L = [gone * experts for experts in layout.num_experts]
    return [int(gone * first + _ROUNDING) for gone in gone_L]


def keep_clusters(
    worth: Sequence[FloatArray],
    homes: Sequence[np.ndarray],
    rates: Rates,
    budget: Budget,
    layout: MoELayout,
    seed: int,
) -> tuple[tuple[int, ...], ...]:
    """Return per layer the clusters that stay, ascending: the stage over all layers.

    Under a `per_layer` budget each layer keeps its own best; under a `global` one all compete, within
    `layer_bounds`. A router with groups keeps the same number in each.

    Args:
        worth: per layer, the importance of each cluster.
        homes: per layer, the router group of each cluster.
        rates: see `Rates`.
        budget: what the run asks for.
        layout: the model's layout.
        seed: orders equal clusters.

    Raises:
        ParameterError: if fewer clusters are left than are to be kept.
    """
    order = [
        rank_in_turn(values, home, layout.num_groups, (seed, layer))
        for values, home, layer in zip(worth, homes, layout.layers, strict=True)
    ]
    ranked = [values[best] for values, best in zip(worth, order, strict=True)]
    keep_L = _counts(ranked, rates, budget, layout, seed)
    return tuple(tuple(sorted(best[:keep].tolist())) for best, keep in zip(order, keep_L, strict=True))


def rank_in_turn(worth_C: FloatArray, home_C: np.ndarray, num_groups: int, seed: Sequence[int]) -> np.ndarray:
    """Return clusters from best to worst, every router group's best first, then every group's second best.

    Cut after any multiple of `num_groups`, it keeps the same number of each group; the clusters that a group has
    more than the smallest group are left out.
    """
    draw_C = np.random.default_rng(list(seed)).permutation(len(worth_C))
    best_C = np.lexsort((draw_C, -worth_C))
    fewest = np.bincount(home_C, minlength=num_groups).min()
    of_group = [best_C[home_C[best_C] == group][:fewest] for group in range(num_groups)]
    return np.stack(of_group, axis=1).reshape(-1)


def _counts(
    ranked: Sequence[FloatArray], rates: Rates, budget: Budget, layout: MoELayout, seed: int
) -> tuple[int, ...]:
    step = step_of(budget, layout)
    left_L = tuple(len(values) // step * step for values in ranked)
    floors, ceilings = layer_bounds(budget, layout)
    if budget.scope == "per_layer":
        if rates.follow == "budget":
            keep_L = experts_to_keep(budget, layout)
        else:
            keep_L = tuple(
                max(floor, _after(left, rates, step)) for floor, left in zip(floors, left_L, strict=True)
            )
        return _within(keep_L, left_L, layout)
    room_L = tuple(min(left, ceiling) for left, ceiling in zip(left_L, ceilings, strict=True))
    if rates.follow == "budget":
        total = total_to_keep(budget, layout)
    else:
        total = min(_after(sum(left_L), rates, step), sum(room_L))
    if total > sum(room_L):
        raise ParameterError(
            f"the budget keeps {total} experts of all layers, but the first stage leaves {sum(room_L)} clusters "
            "within the layers' bounds; ask it for more (select.parameters)"
        )
    return hand_out(ranked, max(total, sum(floors)), _within(floors, left_L, layout), room_L, step, seed)


def _after(left: int, rates: Rates, step: int) -> int:
    return -(-(left - round(rates.global_rate * left)) // step) * step


def _within(keep_L: tuple[int, ...], left_L: tuple[int, ...], layout: MoELayout) -> tuple[int, ...]:
    for layer, keep, left in zip(layout.layers, keep_L, left_L, strict=True):
        if keep > left:
            raise ParameterError(
                f"layer {layer} is to keep {keep} experts, but the first stage leaves {left} clusters; ask it for "
                "more (select.parameters)"
            )
    return keep_L
