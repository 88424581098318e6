"""How many experts each layer keeps: its floor, and of the rest of a total in proportion to its worth."""

import numpy as np

from moe_compress.errors import ParameterError
from moe_compress.methods._budget import layer_bounds, step_of, total_to_keep
from moe_compress.types import Budget, FloatArray, MoELayout


def share_by_importance(importance_L: FloatArray, budget: Budget, layout: MoELayout, seed: int) -> tuple[int, ...]:
    """Return how many experts each layer keeps: its floor, and of the rest in proportion to its importance.

    Steps are given out one at a time to the layer with the highest importance over the steps it would then have, as
    seats are by d'Hondt; the total is met exactly, and no layer gets more than it has.

    Args:
        importance_L: what each layer is worth, at least 0.
        budget: gives the total.
        layout: the model's layout.
        seed: orders layers that are equally far behind.

    Raises:
        ParameterError: if an importance is negative, or the layout cannot meet the budget.
    """
    if (importance_L < 0).any():
        raise ParameterError(
            f"layer {layout.layers[int(importance_L.argmin())]}'s scores add up to {importance_L.min():g}, and "
            "shares cannot be negative; use scope per_layer or global (select.budget.scope)"
        )
    floors, ceilings = layer_bounds(budget, layout)
    step = step_of(budget, layout)
    room_L = [(ceiling - floor) // step for floor, ceiling in zip(floors, ceilings, strict=True)]
    owner = np.repeat(np.arange(len(room_L)), room_L)
    turn = np.concatenate([np.arange(1, room + 1) for room in room_L])
    draw = np.random.default_rng([seed, len(owner)]).permutation(len(owner))
    steps = (total_to_keep(budget, layout) - sum(floors)) // step
    best = np.lexsort((draw, turn, -importance_L[owner] / turn))[:steps]
    taken_L = np.bincount(owner[best], minlength=len(room_L))
    return tuple(int(floor + step * taken) for floor, taken in zip(floors, taken_L, strict=True))
