"""Layer budgets from error curves: the counts of one total with the smallest summed error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_compress.types import FloatArray


def share_by_error(
    curves: Sequence[FloatArray], total: int, floors: Sequence[int], ceilings: Sequence[int], step: int
) -> tuple[int, ...]:
    """Return how many experts each layer keeps so that the summed error is smallest; exact for any curves.

    Args:
        curves: per layer, the error with `d` experts gone at position `d`.
        total: the sum of what is returned; a multiple of `step` above the floors.
        floors: the fewest each layer keeps.
        ceilings: the most each layer keeps; a multiple of `step` above its floor.
        step: what counts are multiples of.
    """
    units = (total - sum(floors)) // step
    cost_U = np.full(units + 1, np.inf)
    cost_U[0] = 0.0
    chosen: list[np.ndarray] = []
    for curve, floor, ceiling in zip(curves, floors, ceilings, strict=True):
        errors = curve[len(curve) - floor - step * np.arange((ceiling - floor) // step + 1)]
        best_U, take_U = np.full(units + 1, np.inf), np.zeros(units + 1, dtype=np.int64)
        for taken, error in enumerate(errors[: units + 1]):
            offered_U = cost_U[: units + 1 - taken] + error
            better_U = offered_U < best_U[taken:]
            best_U[taken:][better_U] = offered_U[better_U]
            take_U[taken:][better_U] = taken
        cost_U = best_U
        chosen.append(take_U)
    counts = []
    for take_U, floor in zip(reversed(chosen), reversed(floors), strict=True):
        counts.append(int(floor + step * take_U[units]))
        units -= int(take_U[units])
    return tuple(reversed(counts))
