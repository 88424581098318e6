"""What a cluster of experts becomes: one expert with weights by some measure, or its best member alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.methods._parameters import MethodParameters
from moe_compress.types import ExpertGroup, ExpertStatistics, FloatArray

MergeWeights = Literal["frequency", "score", "uniform", "best"]
"""Weights in proportion to tokens routed, or to a score; all the same; or the highest score's member alone."""


class MergeParameters(MethodParameters):
    """How a cluster's members are weighted.

    Attributes:
        merge_weights: by what.
        score: the method whose scores `score` and `best` go by.
    """

    merge_weights: MergeWeights = "frequency"
    score: str = "easy_ep"


def scores_of(name: str, statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return the scores `[L, E]` of another method.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if it does not score.
        StatisticsError: if a sum it needs was not collected.
    """
    method = methods.load(name)
    if not hasattr(method, "score"):
        raise ParameterError(
            f"parameter 'score' is '{name}', which plans by itself and gives no scores; name a method that scores "
            "(select.parameters)"
        )
    return method.score(statistics, seed)


def merge_values(kind: MergeWeights, score: str, statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return what members are weighted in proportion to, float64 `[L, E]`.

    Raises:
        StatisticsError: if a sum was not collected.
    """
    if kind == "frequency":
        return statistics["count"]
    if kind == "uniform":
        return np.ones((len(statistics.layout.layers), max(statistics.layout.num_experts)))
    return scores_of(score, statistics, seed)


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
