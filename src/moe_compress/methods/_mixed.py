"""One plan for several domains: their shares of each layer's score, weighted and added (EASY-EP, mixed domains)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from math import sqrt
from operator import add

import numpy as np

from moe_compress.errors import ParameterError, StatisticsError
from moe_compress.methods._choose import layer_shares, layer_worth, share_of_layer
from moe_compress.types import CompressionPlan, ExpertStatistics, FloatArray, MoELayout

MAX_MIN_ROUNDS = 60

_OF_BATCHES = "pooled_gram"

PlanMixture = Callable[[Sequence[float]], CompressionPlan]


def mix_scores(scores: Sequence[FloatArray], weights: Sequence[float], layout: MoELayout) -> FloatArray:
    """Return `I_mix(i) = sum_d w_d I_d(i) / sum_j I_d(j)` per layer, float64 `[L, E]`.

    Args:
        scores: per domain, one method's scores `[L, E]`.
        weights: one per domain.
        layout: tells how many experts each layer has.
    """
    return _add_weighted([layer_shares(scores_LE, layout) for scores_LE in scores], weights)


def mix_worth(scores: Sequence[FloatArray], weights: Sequence[float], layout: MoELayout) -> FloatArray:
    """Return what each layer is worth, float64 `[L]`: the domains' shares of their whole score, weighted and added.

    Mixed scores cannot tell: they add up to the same in every layer.

    Args:
        scores: per domain, one method's scores `[L, E]`.
        weights: one per domain.
        layout: tells how many experts each layer has.
    """
    return _add_weighted([share_of_layer(layer_worth(scores_LE, layout)) for scores_LE in scores], weights)


def _add_weighted(shares: Sequence[FloatArray], weights: Sequence[float]) -> FloatArray:
    mixed = np.zeros_like(shares[0])
    for weight, share in zip(weights, shares, strict=True):
        mixed += weight * share
    return mixed


def coverage(scores_LE: FloatArray, plan: CompressionPlan) -> float:
    """Return how much of what a domain could keep a plan keeps, in [0, 1].

    The mean over layers of the domain's score summed over the kept experts, divided by the sum over its own
    best set of the same size; 1 for a layer in which the domain has no score to lose.
    """
    return float(np.mean([_kept_share(row, kept) for row, kept in zip(scores_LE, plan.kept, strict=True)]))


def _kept_share(scores_E: FloatArray, kept: tuple[int, ...]) -> float:
    best = np.sort(scores_E)[::-1][: len(kept)].sum()
    return float(np.sort(scores_E[list(kept)])[::-1].sum() / best) if best > 0 else 1.0


def max_min_weights(scores: Sequence[FloatArray], plan_mixture: PlanMixture) -> tuple[float, ...]:
    """Return the domain weights, of mean 1, under which the worst covered domain is covered best.

    From equal weights, each of 60 rounds plans, measures every domain's coverage and multiplies the weight of
    the worst by a factor that nears 1. The weights of the best round are returned, the earliest among equals.

    Args:
        scores: per domain, one method's scores `[L, E]`.
        plan_mixture: makes the plan of a mixture with these weights, one per domain.
    """
    weights = np.ones(len(scores))
    best, best_weights = -1.0, weights
    for update in range(MAX_MIN_ROUNDS + 1):
        plan = plan_mixture(weights.tolist())
        covered = [coverage(scores_LE, plan) for scores_LE in scores]
        if min(covered) > best:
            best, best_weights = min(covered), weights
        raised = np.where(np.arange(len(scores)) == np.argmin(covered), 1 + 1 / (2 * sqrt(update + 1)), 1.0)
        weights = weights * raised / np.mean(weights * raised)
    return tuple(best_weights.tolist())


def given_weights(domains: Sequence[str], weights: Mapping[str, float] | str | None) -> tuple[float, ...]:
    """Return one weight per domain: 1 where none is given.

    Raises:
        ParameterError: if a weight is for a domain that is not mixed, negative or not a number, or if all are 0.
    """
    if isinstance(weights, str):
        raise ParameterError(f"weights '{weights}' is no rule for weights; give max_min or a number per domain")
    given = dict(weights or {})
    for domain, weight in given.items():
        if domain not in domains:
            raise ParameterError(
                f"a weight is given for domain '{domain}', which is not mixed; give weights for "
                f"{', '.join(domains)} (select.weights)"
            )
        if not (np.isfinite(weight) and weight >= 0):
            raise ParameterError(
                f"domain '{domain}' has weight {weight}; give a number of at least 0 (select.weights)"
            )
    chosen = tuple(float(given.get(domain, 1.0)) for domain in domains)
    if not any(chosen):
        raise ParameterError(
            f"every domain of {', '.join(domains)} has weight 0; give at least one more than 0 (select.weights)"
        )
    return chosen


def add_domains(ordered: Sequence[ExpertStatistics]) -> ExpertStatistics:
    """Return the sum of the domains' statistics; of `pooled_gram` all batches side by side, on axis 2.

    Batches are of one domain's demonstrations: batch 1 of one domain and batch 1 of another are two batches.

    Raises:
        StatisticsError: if the domains' sums differ in name or shape.
    """
    if any(_OF_BATCHES not in each.sums for each in ordered):
        return reduce(add, ordered)
    batches = np.concatenate([each[_OF_BATCHES] for each in ordered], axis=2)
    others = [{name: each[name] for name in each.sums if name != _OF_BATCHES} for each in ordered]
    added = reduce(add, (replace(each, sums=sums) for each, sums in zip(ordered, others, strict=True)))
    return replace(added, sums={**added.sums, _OF_BATCHES: batches})


def sort_domains(statistics: Sequence[ExpertStatistics]) -> tuple[ExpertStatistics, ...]:
    """Return the statistics by name of domain, so that the order they are given in changes nothing.

    Raises:
        StatisticsError: if there are none, a domain comes twice, or they are of different models.
    """
    if not statistics:
        raise StatisticsError("no statistics were given to mix; collect at least one domain")
    domains = [each.domain for each in statistics]
    if twice := {domain for domain in domains if domains.count(domain) > 1}:
        raise StatisticsError(
            f"domain '{min(twice)}' is mixed twice; add statistics of one domain with + before mixing"
        )
    ordered = tuple(sorted(statistics, key=lambda each: each.domain))
    for each in ordered[1:]:
        if each.layout != ordered[0].layout:
            raise StatisticsError(
                f"statistics of '{ordered[0].domain}' and '{each.domain}' have different layouts; "
                "collect both from the same base model"
            )
    return ordered
