"""How many experts each layer keeps: the same in every layer, or shared out by one ranking over all layers."""

from collections.abc import Sequence
from math import lcm

import numpy as np

from moe_compress.errors import ParameterError
from moe_compress.types import Budget, FloatArray, MoELayout

_ROUNDING = 1e-9
"""0.3 * 10 may fall a hair short of 3 in floating point."""


def check_budget(budget: Budget, layout: MoELayout) -> None:
    """Check that a model of this layout can meet the budget, whatever its scores.

    Raises:
        ParameterError: if it cannot.
    """
    if budget.scope == "per_layer":
        experts_to_keep(budget, layout)
    else:
        total_to_keep(budget, layout)


def drops_any(budget: Budget, layout: MoELayout) -> bool:
    """Return whether a model of this layout loses experts under the budget, whatever its scores.

    Raises:
        ParameterError: if it cannot meet the budget.
    """
    if budget.scope == "per_layer":
        return experts_to_keep(budget, layout) != layout.num_experts
    return total_to_keep(budget, layout) < sum(layout.num_experts)


def experts_to_keep(budget: Budget, layout: MoELayout) -> tuple[int, ...]:
    """Return how many experts each layer keeps under a `per_layer` budget, length L.

    Raises:
        ParameterError: if a layer would keep fewer than the router picks, or more than it has.
    """
    return tuple(
        _check(_round_up(_count(budget, experts), step_of(budget, layout)), layer, experts, budget, layout)
        for layer, experts in zip(layout.layers, layout.num_experts, strict=True)
    )


def step_of(budget: Budget, layout: MoELayout) -> int:
    """Return what each layer's count is a multiple of: what the budget asks, and the router's number of groups."""
    return lcm(budget.multiple_of, layout.num_groups)


def fewest_of(layout: MoELayout) -> int:
    """Return the fewest experts a layer's router works with.

    It picks `top_k`; one that picks among groups finds them in the groups a token may use, and ranks each group by
    its best two.
    """
    if layout.num_groups == 1:
        return layout.top_k
    return layout.num_groups * max(2, -(-layout.top_k // layout.topk_groups))


def total_to_keep(budget: Budget, layout: MoELayout) -> int:
    """Return how many experts all layers keep together when the layers share one total.

    Raises:
        ParameterError: if that is less than the layers' floors, or more than the layers can hold.
    """
    if budget.experts_per_layer is not None:
        wanted = budget.experts_per_layer * len(layout.layers)
    else:
        wanted = _count(budget, sum(layout.num_experts))
    step = step_of(budget, layout)
    total = _round_up(wanted, step)
    floors, ceilings = layer_bounds(budget, layout)
    if total < sum(floors):
        raise ParameterError(
            f"all layers together would keep {total} experts, but each needs {fewest_of(layout)} to route "
            f"{_describe(layout)}, may lose {budget.layer_fraction_dropped:.0%} of its own and keeps at least "
            f"{budget.at_least or 0}, in all {sum(floors)}; keep at least {sum(floors)} (select.budget)"
        )
    if total > sum(ceilings):
        raise ParameterError(
            f"all layers together would keep {total} experts, but in multiples of {step} they hold {sum(ceilings)}"
            f"{'' if budget.at_most is None else f', {budget.at_most} in each at most'}; keep at most "
            f"{sum(ceilings)} (select.budget)"
        )
    return total


def layer_bounds(budget: Budget, layout: MoELayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the fewest and the most experts each layer may keep of a shared total, lengths L.

    Raises:
        ParameterError: if a layer has no multiple of its step between the two.
    """
    step = step_of(budget, layout)
    floors, ceilings = [], []
    for layer, experts in zip(layout.layers, layout.num_experts, strict=True):
        may_go = int(experts * budget.layer_fraction_dropped + _ROUNDING)
        fewest = max(fewest_of(layout), experts - may_go, min(budget.at_least or 0, experts // step * step))
        floors.append(_check(_round_up(fewest, step), layer, experts, budget, layout))
        ceilings.append(min(experts, experts if budget.at_most is None else budget.at_most) // step * step)
        if floors[-1] > ceilings[-1]:
            raise ParameterError(
                f"layer {layer} has to keep at least {floors[-1]} experts and may keep {ceilings[-1]}; raise "
                "select.budget.at_most, or lower at_least or multiple_of"
            )
    return tuple(floors), tuple(ceilings)


def share_out(shares: list[FloatArray], budget: Budget, layout: MoELayout, seed: int) -> tuple[int, ...]:
    """Return how many experts each layer keeps when all layers compete for one total, length L.

    Each layer first keeps its floor. What is left of the total goes, one step of experts at a time, to the
    layer whose next best experts have the highest shares; equal ones are ordered by a seeded draw. Steps inside
    a layer never rise, so taking the highest steps keeps the largest sum of shares the bounds allow.

    Args:
        shares: per layer, its experts' shares of the layer's score, in the order they are kept.
        budget: a `global` budget.
        layout: the model's layout.
        seed: breaks ties.

    Raises:
        ParameterError: if the layout cannot meet the budget.
    """
    floors, ceilings = layer_bounds(budget, layout)
    total, step = total_to_keep(budget, layout), step_of(budget, layout)
    return hand_out(shares, total, floors, ceilings, step, seed)


def hand_out(
    shares: Sequence[FloatArray],
    total: int,
    floors: Sequence[int],
    ceilings: Sequence[int],
    step: int,
    seed: int,
) -> tuple[int, ...]:
    """Return how many each layer keeps of `total`: its floor, and the best of what lies above the floors.

    Args:
        shares: per layer, what each of its experts is worth, in the order they are kept.
        total: the sum of what is returned.
        floors: the fewest each layer keeps.
        ceilings: the most each layer keeps; a multiple of `step` above its floor.
        step: taken at a time.
        seed: orders equal steps.
    """
    spare = [
        shares[row][floor:ceiling].reshape(-1, step).sum(axis=1)
        for row, (floor, ceiling) in enumerate(zip(floors, ceilings, strict=True))
    ]
    owner = np.repeat(np.arange(len(spare)), [len(values) for values in spare])
    tie_break = np.random.default_rng([seed, len(owner)]).permutation(len(owner))
    best = np.lexsort((tie_break, -np.concatenate(spare)))[: (total - sum(floors)) // step]
    taken_L = np.bincount(owner[best], minlength=len(spare))
    return tuple(int(floor + step * taken) for floor, taken in zip(floors, taken_L, strict=True))


def _count(budget: Budget, num_experts: int) -> int:
    if budget.experts_per_layer is not None:
        return budget.experts_per_layer
    return num_experts - int(num_experts * (budget.fraction_dropped or 0.0) + _ROUNDING)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _check(keep: int, layer: int, num_experts: int, budget: Budget, layout: MoELayout) -> int:
    fewest, step = fewest_of(layout), step_of(budget, layout)
    if keep < fewest:
        raise ParameterError(
            f"layer {layer} would keep {keep} experts, but the router picks {_describe(layout)}; "
            f"keep at least {fewest} (select.budget)"
        )
    if keep > num_experts and step > 1:
        raise ParameterError(
            f"layer {layer} would keep {keep} experts to reach a multiple of {step}, but it has "
            f"{num_experts}; keep at most {num_experts // step * step} (select.budget)"
        )
    if keep > num_experts:
        raise ParameterError(
            f"layer {layer} would keep {keep} experts, but it has {num_experts}; "
            f"keep at most {num_experts} (select.budget)"
        )
    return keep


def _describe(layout: MoELayout) -> str:
    picks = f"top_k={layout.top_k} per token"
    if layout.num_groups == 1:
        return picks
    return f"{picks} from {layout.topk_groups} of {layout.num_groups} groups of at least 2"
