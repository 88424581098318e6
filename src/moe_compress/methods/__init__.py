"""One published method a file: `methods/easy_ep.py` is method `easy_ep`, found by its file name.

A method file has `STATISTICS`, the names of the sums it needs, and
`score(statistics, seed) -> float64 [L, E]`, higher is better. `methods.plan` turns any of them into a plan for
one domain, `methods.plan_mixed` for several.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, cast

from moe_compress.methods._agreement import compare_halves
from moe_compress.methods._budget import check_budget, experts_to_keep
from moe_compress.methods._choose import plan_scores
from moe_compress.methods._mixed import given_weights, max_min_weights, mix_scores, sort_domains
from moe_compress.plugins import list_plugins, load_plugin
from moe_compress.types import Agreement, Budget, CompressionPlan, ExpertStatistics, FloatArray, RouterGroups

__all__ = [
    "Method",
    "available",
    "check_budget",
    "experts_to_keep",
    "load",
    "measure_agreement",
    "plan",
    "plan_mixed",
]


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


def plan(
    name: str,
    statistics: ExpertStatistics,
    budget: Budget,
    seed: int,
    router_groups: RouterGroups = "balanced",
) -> CompressionPlan:
    """Return the plan of method `name` that keeps the experts with the highest scores.

    Args:
        name: the method.
        statistics: one domain's sums.
        budget: how many experts stay.
        seed: breaks ties, and draws for methods that draw.
        router_groups: whether the groups of a router that has them stay, equally large, or are given up.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the layout.
        StatisticsError: if a sum the method needs was not collected.
    """
    scores_LE = load(name).score(statistics, seed)
    made = plan_scores(name, scores_LE, statistics.layout, budget, seed, router_groups)
    return replace(made, provenance=statistics.provenance)


def plan_mixed(
    name: str,
    statistics: Sequence[ExpertStatistics],
    budget: Budget,
    seed: int,
    weights: Mapping[str, float] | Literal["max_min"] | None = None,
    router_groups: RouterGroups = "balanced",
) -> CompressionPlan:
    """Return the plan of method `name` for several domains at once, from statistics collected one by one.

    Each domain's scores are divided by their sum in the layer, weighted and added (EASY-EP, mixed domains).

    Args:
        name: the method.
        statistics: one per domain, in any order.
        budget: how many experts stay.
        seed: breaks ties, and draws for methods that draw.
        weights: domain -> weight, 1 where none is given; None weighs all the same; `max_min` finds the weights
            that cover the worst covered domain best.
        router_groups: whether the groups of a router that has them stay, equally large, or are given up.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the layout, or a weight does not fit the domains.
        StatisticsError: if statistics do not belong together, or a sum the method needs was not collected.
    """
    ordered = sort_domains(statistics)
    domains, layout = [each.domain for each in ordered], ordered[0].layout
    scores = [load(name).score(each, seed) for each in ordered]

    def plan_mixture(mixed_LE: FloatArray) -> CompressionPlan:
        return plan_scores(name, mixed_LE, layout, budget, seed, router_groups)

    if weights == "max_min":
        chosen = max_min_weights(scores, layout, plan_mixture)
    else:
        chosen = given_weights(domains, weights)
    described = ", ".join(f"{domain}={weight:g}" for domain, weight in zip(domains, chosen, strict=True))
    mixed = plan_mixture(mix_scores(scores, chosen, layout))
    return replace(mixed, provenance={"domains": "+".join(domains), "domain_weights": described})


def measure_agreement(
    name: str,
    statistics: ExpertStatistics,
    budget: Budget,
    seed: int,
    router_groups: RouterGroups = "balanced",
) -> Agreement | None:
    """Return how far method `name` depends on which demonstrations it saw, from what was collected anyway.

    None where that cannot be told: with one demonstration, or where the sums the method needs were not kept
    apart by demonstrations.

    Args:
        name: the method.
        statistics: one domain's sums.
        budget: how many experts stay.
        seed: breaks ties, and draws for methods that draw.
        router_groups: whether the groups of a router that has them stay, equally large, or are given up.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the layout.
    """
    parts = statistics.parts
    if parts is None or parts.ends[-1] < 2 or not set(load(name).STATISTICS) <= set(parts.sums):
        return None
    return compare_halves(statistics, lambda part: plan(name, part, budget, seed, router_groups))
