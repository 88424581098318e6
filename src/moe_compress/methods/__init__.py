"""One published method a file: `methods/easy_ep.py` is method `easy_ep`, found by its file name.

A method file has `STATISTICS`, the names of the sums it needs, and one of

- `score(statistics, seed) -> float64 [L, E]`, higher is better: the highest scores are kept;
- `plan(statistics, budget, seed, parameters) -> CompressionPlan`: it groups and merges by its own rules. Its
  `PARAMETERS`, a `MethodParameters` with defaults, says what can be set for it. If it joins experts in trees, a
  `trees` with the same arguments returns them, to be drawn. With a `reduce(sample, seed, parameters)` it makes its
  statistics of each layer's sample itself, during collection.

`methods.plan` turns any of them into a plan for one domain, `methods.plan_mixed` into one for several.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from moe_compress.errors import ParameterError, PluginError
from moe_compress.methods._agreement import compare_halves
from moe_compress.methods._budget import check_budget, drops_any, experts_to_keep, layer_bounds, total_to_keep
from moe_compress.methods._choose import plan_scores
from moe_compress.methods._likeness import measure_likeness
from moe_compress.methods._mixed import (
    add_domains,
    given_weights,
    max_min_weights,
    mix_scores,
    mix_worth,
    sort_domains,
)
from moe_compress.methods._parameters import MethodParameters, parse_parameters
from moe_compress.methods._released_votes import prune_published
from moe_compress.methods._target import budget_within, check_within, parse_count, parse_size
from moe_compress.plugins import list_plugins, load_plugin
from moe_compress.types import (
    Agreement,
    Budget,
    CompressionPlan,
    ExpertStatistics,
    FloatArray,
    LayerSample,
    PlanBackground,
    Reduction,
    RouterGroups,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "Method",
    "MethodParameters",
    "PlanMethod",
    "ScoreMethod",
    "available",
    "budget_within",
    "check_budget",
    "check_parameters",
    "check_scope",
    "check_weights",
    "check_within",
    "describe_background",
    "drops_any",
    "experts_to_keep",
    "load",
    "measure_agreement",
    "parse_count",
    "parse_size",
    "plan",
    "plan_mixed",
    "prune_published",
    "reduction",
    "total_to_keep",
]


class ScoreMethod(Protocol):
    """A file that scores experts."""

    STATISTICS: tuple[str, ...]

    def score(self, statistics: ExpertStatistics, seed: int) -> FloatArray:
        """Return one score per layer and expert, float64 `[L, E]`, higher is better."""


class PlanMethod(Protocol):
    """A file that plans by itself, because what it does is more than keeping the highest scores."""

    STATISTICS: tuple[str, ...]
    PARAMETERS: type[MethodParameters]

    def plan(self, statistics: ExpertStatistics, budget: Budget, seed: int, parameters: Any) -> CompressionPlan:
        """Return the plan; `parameters` is an instance of `PARAMETERS`."""


Method = ScoreMethod | PlanMethod


def available() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return list_plugins(sys.modules[__name__])


def load(name: str) -> Method:
    """Return a method by name.

    Raises:
        PluginError: if there is no such file, or it is not a method.
    """
    module = load_plugin(sys.modules[__name__], name)
    if not hasattr(module, "STATISTICS") or hasattr(module, "score") == hasattr(module, "plan"):
        raise PluginError(
            f"methods/{name}.py is no method; give it STATISTICS, and either score() or plan() with PARAMETERS"
        )
    return cast(Method, module)


def check_parameters(name: str, given: Mapping[str, Any] | None) -> MethodParameters:
    """Return the parameters of method `name`, its defaults where none are given; needs no statistics.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the method has no such parameter, or it does not allow the value.
    """
    return parse_parameters(name, getattr(load(name), "PARAMETERS", MethodParameters), given)


def check_scope(name: str, budget: Budget) -> None:
    """Check that method `name` can share experts out over layers as the budget says; needs no statistics.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if it cannot.
    """
    if budget.scope == "importance" and not hasattr(load(name), "score"):
        raise ParameterError(
            f"{name} plans by itself and has no layer scores to share a total by; give per_layer or global "
            "(select.budget.scope)"
        )


def check_weights(name: str, weights: Mapping[str, float] | Literal["max_min"] | None) -> None:
    """Check that a mixture's domains can be weighed with method `name`; needs no statistics.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if weights are given and the method has no scores.
    """
    if weights is not None and not hasattr(load(name), "score"):
        raise ParameterError(
            f"{name} plans by itself and has no scores to weigh; leave select.weights null, or mix a method "
            "that scores"
        )


def reduction(name: str, seed: int, given: Mapping[str, Any] | None = None) -> Reduction:
    """Return what turns a layer's sample into `elimination_rank` and `elimination_error`.

    That of method `name`, or that of `reconstruct` as it is by default, for runs that collect for later.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the method has no such parameter, or it does not allow the value.
    """
    if hasattr(load(name), "reduce"):
        return _Reduction(name, seed, check_parameters(name, given))
    return _Reduction("reconstruct", seed, check_parameters("reconstruct", None))


@dataclass(frozen=True)
class _Reduction:
    """A method's `reduce` with its settings, which are all that its `repr` says."""

    method: str
    seed: int
    parameters: MethodParameters

    def __call__(self, sample: LayerSample) -> Mapping[str, torch.Tensor]:
        reduced: Mapping[str, torch.Tensor] = cast(Any, load(self.method)).reduce(
            sample, self.seed, self.parameters
        )
        return reduced


def plan(
    name: str,
    statistics: ExpertStatistics,
    budget: Budget,
    seed: int,
    router_groups: RouterGroups = "balanced",
    parameters: Mapping[str, Any] | None = None,
) -> CompressionPlan:
    """Return the plan of method `name` for one domain.

    Args:
        name: the method.
        statistics: one domain's sums.
        budget: how many experts stay.
        seed: breaks ties, and draws for methods that draw.
        router_groups: whether the groups of a router that has them stay, equally large, or are given up.
        parameters: what is set of the method's own parameters.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the layout, or a parameter the method.
        StatisticsError: if a sum the method needs was not collected.
    """
    method, given, layout = load(name), check_parameters(name, parameters), statistics.layout
    if hasattr(method, "score"):
        made = plan_scores(name, method.score(statistics, seed), layout, budget, seed, router_groups)
    else:
        check_scope(name, budget)
        # A method that plans by itself sees a router without groups where they are given up.
        limits = layout.flattened if router_groups == "flatten" else layout
        made = method.plan(replace(statistics, layout=limits), budget, seed, given)
        aligns = getattr(given, "align_neurons", False) and not made.is_pruning
        made = replace(made, layout=layout, method=name, router_groups=router_groups, align_neurons=aligns)
    return replace(made, provenance=statistics.provenance)


def plan_mixed(
    name: str,
    statistics: Sequence[ExpertStatistics],
    budget: Budget,
    seed: int,
    weights: Mapping[str, float] | Literal["max_min"] | None = None,
    router_groups: RouterGroups = "balanced",
    parameters: Mapping[str, Any] | None = None,
) -> CompressionPlan:
    """Return the plan of method `name` for several domains at once, from statistics collected one by one.

    Each domain's scores are divided by their sum in the layer, weighted and added (EASY-EP, mixed domains);
    for a budget by `importance`, so are the layers' summed scores by their sum over all layers. A
    method that plans by itself has no scores to mix and is given the sum of the domains' statistics, and what was
    kept by batch (`pooled_gram`) of all batches of all domains.

    Args:
        name: the method.
        statistics: one per domain, in any order.
        budget: how many experts stay.
        seed: breaks ties, and draws for methods that draw.
        weights: domain -> weight, 1 where none is given; None weighs all the same; `max_min` finds the weights
            that cover the worst covered domain best.
        router_groups: whether the groups of a router that has them stay, equally large, or are given up.
        parameters: what is set of the method's own parameters.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if weights are given and the method has no scores, the budget does not fit the layout, or a
            weight or parameter the domains or the method.
        StatisticsError: if statistics do not belong together, or a sum the method needs was not collected.
    """
    ordered = sort_domains(statistics)
    domains, layout = [each.domain for each in ordered], ordered[0].layout
    method = load(name)
    provenance = {"domains": "+".join(domains)}
    if not hasattr(method, "score"):
        check_weights(name, weights)
        summed = plan(name, add_domains(ordered), budget, seed, router_groups, parameters)
        return replace(summed, provenance=provenance)
    check_parameters(name, parameters)
    scores = [method.score(each, seed) for each in ordered]

    def plan_mixture(weights: Sequence[float]) -> CompressionPlan:
        mixed_LE, worth_L = mix_scores(scores, weights, layout), mix_worth(scores, weights, layout)
        return plan_scores(name, mixed_LE, layout, budget, seed, router_groups, worth_L)

    chosen = max_min_weights(scores, plan_mixture) if weights == "max_min" else given_weights(domains, weights)
    described = ", ".join(f"{domain}={weight:g}" for domain, weight in zip(domains, chosen, strict=True))
    return replace(plan_mixture(chosen), provenance={**provenance, "domain_weights": described})


def measure_agreement(
    name: str,
    statistics: ExpertStatistics,
    budget: Budget,
    seed: int,
    router_groups: RouterGroups = "balanced",
    parameters: Mapping[str, Any] | None = None,
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
        parameters: what is set of the method's own parameters.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the layout.
    """
    parts = statistics.parts
    if parts is None or parts.ends[-1] < 2 or not set(load(name).STATISTICS) <= set(parts.sums):
        return None
    return compare_halves(statistics, lambda part: plan(name, part, budget, seed, router_groups, parameters))


def describe_background(
    name: str,
    statistics: ExpertStatistics,
    budget: Budget,
    seed: int,
    router_groups: RouterGroups = "balanced",
    parameters: Mapping[str, Any] | None = None,
) -> PlanBackground:
    """Return what there is to draw of a plan besides the plan: how alike experts are, their trees, the bounds.

    Arguments are those of `plan`. The trees are the method's own where it has some, else an average linkage of the
    experts' mean outputs, which nothing was chosen by.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the layout.
    """
    limits = statistics.layout.flattened if router_groups == "flatten" else statistics.layout
    likeness, trees = measure_likeness(statistics) or (None, None)
    own_trees = getattr(load(name), "trees", None)
    if own_trees:
        given = check_parameters(name, parameters)
        trees = own_trees(replace(statistics, layout=limits), budget, seed, given)
    bounds = None if budget.scope == "per_layer" else tuple(zip(*layer_bounds(budget, limits), strict=True))
    return PlanBackground(likeness, trees, bounds)
