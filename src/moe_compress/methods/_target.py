"""Budgets said otherwise: as the size of the whole model, or shared over layers by their importance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moe_compress.errors import ParameterError
from moe_compress.methods._budget import check_budget, step_of
from moe_compress.types import Budget, FloatArray, MoELayout

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


@dataclass(frozen=True)
class ModelSize:
    """What a model's experts and the rest of it weigh.

    Attributes:
        experts: per layer with experts, one expert's size, its router row included; length L.
        rest: the size of everything else.
        unit: `bytes` or `parameters`, for messages.
    """

    experts: tuple[int, ...]
    rest: int
    unit: Literal["bytes", "parameters"] = "bytes"


def parse_size(text: str | int) -> int:
    """Return a number of bytes or parameters: `24 GB` is 24 * 10^9, `24 GiB` 24 * 2^30, `13B` 13 * 10^9 parameters.

    Raises:
        ParameterError: if it is neither a number nor a number with a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]I?)?(B?)|)\s*", str(text).upper())
    if match is None:
        raise ParameterError(f"a size of '{text}' is not understood; write bytes, or a number with GB or GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def budget_within(
    max_size: int,
    size: ModelSize,
    layout: MoELayout,
    scope: Literal["per_layer", "global"] = "per_layer",
    multiple_of: int = 1,
) -> Budget:
    """Return the budget that keeps as many experts as fit.

    Under `global` it is not known beforehand which layers keep more, so where layers' experts differ in size all
    are taken to be as large as the largest.

    Raises:
        ParameterError: if not even the fewest experts that the router works with fit.
    """
    unlimited = Budget(fraction_dropped=0.0, scope=scope, multiple_of=multiple_of)
    step = step_of(unlimited, layout)
    room = max_size - size.rest
    if scope == "global":
        most = max(0, room) // (max(size.experts) * step) * step
        total = min(most, sum(experts // step * step for experts in layout.num_experts))
        every = sum(layout.num_experts)
        budget = replace(unlimited, fraction_dropped=min((every - total) / every, 1 - 1 / (2 * every)))
    else:
        most = max(0, room) // (sum(size.experts) * step) * step
        fit = min(most, min(layout.num_experts) // step * step)
        budget = Budget(experts_per_layer=fit, scope=scope, multiple_of=multiple_of)
    try:
        check_budget(budget, layout)
    except ParameterError as error:
        raise ParameterError(
            f"{max_size} {size.unit} leave {max(0, room)} for experts, too little: {error}"
        ) from error
    return budget


def share_by_importance(
    importance_L: FloatArray, total: int, floors: Sequence[int], ceilings: Sequence[int], step: int, seed: int
) -> tuple[int, ...]:
    """Return how many experts each layer keeps: above its floor in proportion to its importance, below its ceiling.

    Steps are given out one at a time to the layer that is farthest behind its share, as in a proportional vote
    (d'Hondt); the total is met exactly.

    Args:
        importance_L: what each layer is worth, at least 0.
        total: the sum of what is returned.
        floors: the fewest each layer keeps.
        ceilings: the most each layer keeps; a multiple of `step` above its floor.
        step: what counts are multiples of.
        seed: orders layers that are equally far behind.

    Raises:
        ParameterError: if a layer's importance is negative or not a number, or the bounds exclude the total.
    """
    if not (np.isfinite(importance_L).all() and (importance_L >= 0).all()):
        raise ParameterError(f"layer importances {importance_L.tolist()} are not all at least 0; give such numbers")
    if not sum(floors) <= total <= sum(ceilings):
        raise ParameterError(
            f"{total} experts are to be kept of layers that hold between {sum(floors)} and {sum(ceilings)}; ask for "
            "a number between (select.budget)"
        )
    room_L = [(ceiling - floor) // step for floor, ceiling in zip(floors, ceilings, strict=True)]
    owner = np.repeat(np.arange(len(room_L)), room_L)
    turn = np.concatenate([np.arange(1, room + 1) for room in room_L])
    draw = np.random.default_rng([seed, len(owner)]).permutation(len(owner))
    best = np.lexsort((draw, turn, -importance_L[owner] / turn))[: (total - sum(floors)) // step]
    taken_L = np.bincount(owner[best], minlength=len(room_L))
    return tuple(int(floor + step * taken) for floor, taken in zip(floors, taken_L, strict=True))
