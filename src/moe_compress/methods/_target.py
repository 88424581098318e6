"""A budget said as the size of the whole model: how many experts fit beside everything else."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from moe_compress.errors import ParameterError
from moe_compress.methods._budget import check_budget, step_of
from moe_compress.types import Budget, MoELayout

_UNITS = {"": 1, "M": 10**6, "G": 10**9, "T": 10**12, "MI": 2**20, "GI": 2**30, "TI": 2**40}


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
    """Return a number of bytes: `24 GB` is 24 * 10^9, `24 GiB` is 24 * 2^30, a plain number itself.

    Raises:
        ParameterError: if it is neither a number nor a number with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([MGT]I?)B)?", str(text).strip().upper())
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
