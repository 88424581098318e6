"""What a cluster of experts becomes: one expert with weights by some measure, or its best member alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf
from typing import Annotated, Literal, cast

import numpy as np
from pydantic import AfterValidator, Field
from scipy.special import expit, softmax

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.methods._parameters import MethodParameters
from moe_compress.types import Budget, ExpertGroup, ExpertStatistics, FloatArray, MoELayout

MergeWeights = Literal["affinity", "frequency", "score", "uniform", "best"]
"""By how alike a member is to its cluster (C-Prune, 12); in proportion to tokens routed, or to a score; all the
same; or the highest score's member alone."""


def load_scoring(name: str) -> methods.ScoreMethod:
    """Return another method that scores.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if it does not score.
    """
    method = methods.load(name)
    if not hasattr(method, "score"):
        raise ParameterError(
            f"parameter 'score' is '{name}', which plans by itself and gives no scores; name a method that scores "
            "(select.parameters)"
        )
    return cast(methods.ScoreMethod, method)


def _check_scoring(name: str) -> str:
    load_scoring(name)
    return name


ScoreName = Annotated[str, AfterValidator(_check_scoring)]
"""The name of a method that scores."""


class MergeParameters(MethodParameters):
    """How a cluster's members are weighted.

    Attributes:
        merge_weights: by what.
        score: the method whose scores `score` and `best` go by.
        alpha: sensitivity of `affinity` to similarity (7).
        gamma: sharpness of its weights (12).
        align_neurons: put each member's neurons in the order of the heaviest member's before averaging.
    """

    merge_weights: MergeWeights = "frequency"
    score: ScoreName = "easy_ep"
    alpha: float = 1.0
    gamma: float = Field(1.0, ge=0)
    align_neurons: bool = False

    def merges(self, budget: Budget, layout: MoELayout) -> bool:
        """Return whether a cluster becomes a mean of its members."""
        return averages(self.merge_weights, self.gamma)


def averages(kind: MergeWeights, gamma: float) -> bool:
    """Return whether members weighted so are averaged, instead of one of them being kept."""
    return kind != "best" and not (kind == "affinity" and isinf(gamma))


def scores_of(name: str, statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return the scores `[L, E]` of another method.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if it does not score.
        StatisticsError: if a sum it needs was not collected.
    """
    return load_scoring(name).score(statistics, seed)


def merge_values(kind: MergeWeights, score: str, statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return what members are weighted in proportion to, float64 `[L, E]`; for `affinity`, which has none, ones.

    Raises:
        StatisticsError: if a sum was not collected.
    """
    if kind == "frequency":
        return statistics["count"]
    if kind in ("uniform", "affinity"):
        return np.ones((len(statistics.layout.layers), max(statistics.layout.num_experts)))
    return scores_of(score, statistics, seed)


def merge_alike(
    clusters: Sequence[Sequence[int]], products_EE: FloatArray, alpha: float, gamma: float, seed: Sequence[int]
) -> tuple[ExpertGroup, ...]:
    """Return one group per cluster, ordered by smallest member, its weights `softmax_i(gamma A_ik)` (C-Prune, 12).

    `A_ik = sigmoid(alpha cos(x_i, mean x))` is a member's affinity to its cluster's centre, for whatever the
    experts were clustered by. With `gamma` infinite the one with the highest is left alone, of equal
    ones by a seeded draw.

    Args:
        clusters: experts of each.
        products_EE: inner products `x_i . x_j`.
        alpha: sensitivity of the affinity.
        gamma: sharpness of the weights.
        seed: of the draw.
    """
    draw_E = np.random.default_rng(list(seed)).permutation(len(products_EE))
    groups = []
    for members in map(sorted, clusters):
        own_MM = products_EE[np.ix_(members, members)]
        lengths_M = np.sqrt(np.maximum(np.diag(own_MM), 0.0) * max(own_MM.mean(), 0.0))
        cosine_M = np.divide(own_MM.mean(axis=1), lengths_M, out=np.zeros(len(members)), where=lengths_M > 0)
        affinity_M = expit(alpha * cosine_M)
        if isinf(gamma):
            groups.append(ExpertGroup((members[int(np.lexsort((draw_E[members], -affinity_M))[0])],)))
        else:
            groups.append(ExpertGroup(tuple(members), tuple(softmax(gamma * affinity_M).tolist())))
    return tuple(sorted(groups, key=lambda group: group.members))


def merge_layer(
    clusters: Sequence[Sequence[int]],
    values_E: FloatArray,
    products_EE: FloatArray,
    parameters: MergeParameters,
    seed: Sequence[int],
) -> tuple[ExpertGroup, ...]:
    """Return one group per cluster of a layer, weighted as the parameters say.

    Args:
        clusters: experts of each.
        values_E: see `merge_values`.
        products_EE: inner products of what the experts were clustered by.
        parameters: how members are weighted.
        seed: of draws that order equal members.
    """
    if parameters.merge_weights == "affinity":
        return merge_alike(clusters, products_EE, parameters.alpha, parameters.gamma, seed)
    return merge_clusters(clusters, values_E, parameters.merge_weights, seed)


def merge_clusters(
    clusters: Sequence[Sequence[int]], values_E: FloatArray, kind: MergeWeights, seed: Sequence[int]
) -> tuple[ExpertGroup, ...]:
    """Return one group per cluster with weights that sum to 1, ordered by smallest member.

    Members without any value between them weigh the same. Of equally good members, `best` keeps one by a seeded
    draw.
    """
    draw_E = np.random.default_rng(list(seed)).permutation(len(values_E))
    groups = (_merge(sorted(members), values_E, draw_E, kind) for members in clusters)
    return tuple(sorted(groups, key=lambda group: group.members))


def _merge(members: list[int], values_E: FloatArray, draw_E: np.ndarray, kind: MergeWeights) -> ExpertGroup:
    if kind == "best":
        return ExpertGroup((min(members, key=lambda expert: (-values_E[expert], draw_E[expert])),))
    values = np.maximum(values_E[members], 0.0)
    total = values.sum()
    weights = values / total if total > 0 else np.full(len(members), 1 / len(members))
    return ExpertGroup(tuple(members), tuple(weights.tolist()))
