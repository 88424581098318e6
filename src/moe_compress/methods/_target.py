"""A budget said as the size of the whole model: how many experts fit beside everything else."""

from __future__ import annotations

import re
from dataclasses import replace

from moe_compress.errors import ParameterError
from moe_compress.methods._budget import check_budget, fewest_of, layer_bounds, step_of
from moe_compress.types import Budget, CompressionPlan, ModelSize, MoELayout

_BYTES = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_NUMBERS = {"": 1, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_size(text: str | int) -> int:
    """Return a number of bytes: `24 GB` is 24 * 10^9, `24 GiB` is 24 * 2^30, a plain number itself.

    Raises:
        ParameterError: if it is neither a number nor a number with a unit.
    """
    return _parse(text, _BYTES, "a size of", "bytes, or a number with GB or GiB")


def parse_count(text: str | int) -> int:
    """Return a number of parameters: `13B` is 13 * 10^9, `500M` is 500 * 10^6, a plain number itself.

    Raises:
        ParameterError: if it is neither a number nor a number with a unit.
    """
    return _parse(text, _NUMBERS, "a number of parameters of", "a number, or one with M, B or T")


def _parse(text: str | int, units: dict[str, int], what: str, instead: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(text).strip().upper())
    if match is None or match[2] not in units:
        raise ParameterError(f"{what} '{text}' is not understood; write {instead} (select.budget)")
    return int(float(match[1]) * units[match[2]]) if match[2] or "." in match[1] else int(match[1])


def budget_within(max_size: int, size: ModelSize, layout: MoELayout, limits: Budget) -> Budget:
    """Return the budget that keeps as many experts as fit.

    Where layers share a total it is not known beforehand which keep more, so where layers' experts differ in size
    all are taken to be as large as the largest.

    Args:
        max_size: what the whole model may weigh.
        size: what its parts weigh.
        layout: the model's layout.
        limits: a budget whose scope, multiple and bounds count, not its number of experts.

    Raises:
        ParameterError: if not even the fewest experts that the router works with fit.
    """
    step = step_of(limits, layout)
    room = max(0, max_size - size.rest)
    if limits.scope == "per_layer":
        each, most = sum(size.experts), min(layout.num_experts) // step * step
        fewest = -(-fewest_of(layout) // step) * step
    else:
        floors, ceilings = layer_bounds(limits, layout)
        each, most, fewest = max(size.experts), sum(ceilings), sum(floors)
    fit = min(most, room // (each * step) * step)
    if fit < fewest <= most:
        raise ParameterError(
            f"{max_size} {size.unit} leave {room} for experts beside the {size.rest} of everything else, and the "
            f"fewest that the router works with take {fewest * each}; give at least {size.rest + fewest * each} "
            "(select.budget)"
        )
    budget = _budget_of(fit, limits, layout)
    check_budget(budget, layout)
    return budget


def _budget_of(count: int, limits: Budget, layout: MoELayout) -> Budget:
    if limits.scope == "per_layer":
        return replace(limits, experts_per_layer=count, fraction_dropped=None)
    every = sum(layout.num_experts)
    fraction = min((every - count) / every, 1 - 1 / (2 * every))
    return replace(limits, experts_per_layer=None, fraction_dropped=fraction)


def check_within(plan: CompressionPlan, budget: Budget) -> None:
    """Check that a plan keeps no more experts than a budget has room for.

    Raises:
        ParameterError: if it keeps more, as a method may that does not go by the budget.
    """
    kept = plan.new_layout.num_experts
    if budget.experts_per_layer is not None:
        has, may = max(kept), budget.experts_per_layer
    else:
        every = sum(plan.layout.num_experts)
        has, may = sum(kept), every - int(every * (budget.fraction_dropped or 0.0) + 1e-9)
    if has > may:
        raise ParameterError(
            f"'{plan.method}' keeps {has} experts and only {may} fit into the size that is asked for; have the "
            "method follow the budget (select.parameters), or take another"
        )
