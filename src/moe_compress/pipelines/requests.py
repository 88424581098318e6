"""Which statistics a run collects besides those every collection has: its method's, and those listed."""

from __future__ import annotations

from moe_compress import methods
from moe_compress.collection.requests import resolve_requests
from moe_compress.pipelines.parameters import CollectParameters, SelectParameters


def find_requests(collect: CollectParameters, chosen: SelectParameters) -> tuple[str, ...]:
    """Return the requests of a run, sorted.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if a statistic is asked for that cannot be collected.
    """
    return resolve_requests(collect.statistics, methods.load(chosen.method).STATISTICS)
