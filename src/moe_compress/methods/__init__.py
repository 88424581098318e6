"""One published method a file: `methods/easy_ep.py` is method `easy_ep`, found by its file name.

A method file has `STATISTICS`, the names of the sums it needs, and
`score(statistics, seed) -> float64 [L, E]`, higher is better. `methods.plan` turns any of them into a plan.
"""

from __future__ import annotations

import sys
from typing import Protocol, cast

from moe_compress.methods._budget import check_budget, experts_to_keep
from moe_compress.methods._choose import keep_top
from moe_compress.plugins import list_plugins, load_plugin
from moe_compress.types import Budget, CompressionPlan, ExpertStatistics, FloatArray

__all__ = ["Method", "available", "check_budget", "experts_to_keep", "load", "plan"]


class Method(Protocol):
    """What a file in this folder provides."""

    STATISTICS: tuple[str, ...]

    def score(self, statistics: ExpertStatistics, seed: int) -> FloatArray:
        """Return one score per layer and expert, float64 `[L, E]`, higher is better."""


def available() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return list_plugins(sys.modules[__name__])


def load(name: str) -> Method:
    """Return a method by name.

    Raises:
        PluginError: if there is no such file.
    """
    return cast(Method, load_plugin(sys.modules[__name__], name))


def plan(name: str, statistics: ExpertStatistics, budget: Budget, seed: int) -> CompressionPlan:
    """Return the plan of method `name` that keeps the experts with the highest scores.

    Args:
        name: the method.
        statistics: one domain's sums.
        budget: how many experts stay.
        seed: breaks ties, and draws for methods that draw.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the layout.
        StatisticsError: if a sum the method needs was not collected.
    """
    scores_LE = load(name).score(statistics, seed)
    return keep_top(name, scores_LE, statistics, budget, seed)
