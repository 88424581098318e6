"""Which statistics a run collects besides those every collection has: its method's, and those listed; and how."""

from __future__ import annotations

from collections.abc import Iterable

from moe_compress import methods
from moe_compress.collection.requests import resolve_requests
from moe_compress.pipelines.parameters import SelectParameters
from moe_compress.types import Reduction


def find_sweep_requests(tried: Iterable[str], statistics: Iterable[str]) -> tuple[str, ...]:
    """Return the requests of a sweep, sorted: what any of its methods needs, and those listed.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if a statistic is asked for that cannot be collected.
    """
    return resolve_requests(statistics, *(methods.load(method).STATISTICS for method in tried))


def find_requests(method: str, statistics: Iterable[str]) -> tuple[str, ...]:
    """Return the requests of a run, sorted.

    Args:
        method: the method that chooses experts.
        statistics: those listed under `collect.statistics`.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if a statistic is asked for that cannot be collected.
    """
    return resolve_requests(statistics, methods.load(method).STATISTICS)


def find_reduction(requests: Iterable[str], select: SelectParameters) -> Reduction | None:
    """Return what reduces a layer's sample for a selection, None where nothing requested is made of one.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if a parameter does not suit the method.
    """
    if "elimination" not in requests:
        return None
    return methods.reduction(select.method, select.seed, select.parameters)
