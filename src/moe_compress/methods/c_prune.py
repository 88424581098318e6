"""`c_prune`: cluster and merge experts in each layer, then drop the clusters least needed over all (C-Prune)."""

from __future__ import annotations

from math import inf
from typing import Literal

import numpy as np
from pydantic import Field

from moe_compress.methods import _merging, easy_ep
from moe_compress.methods._agglomerate import (
    Agglomeration,
    Cluster,
    Join,
    cluster_experts,
    distances_to_mean,
    merge_group,
    name_joins,
)
from moe_compress.methods._choose import layer_shares
from moe_compress.methods._homogeneity import Clustering, mean_affinity
from moe_compress.methods._stages import Rates, clusters_to_leave, keep_clusters
from moe_compress.types import (
    Budget,
    CompressionPlan,
    ExpertGroup,
    ExpertStatistics,
    FloatArray,
    MergeTrees,
    MoELayout,
    RouterNoise,
)

STATISTICS: tuple[str, ...] = ("embedding", *easy_ep.STATISTICS)


class PARAMETERS(Rates):
    """C-Prune's parameters with its paper's values; what it names and gives no value for is marked "ours".

    Attributes:
        grouping: how far the first stage merges: `adaptive` as far as the rates say, but never past the
            threshold (5, 6); `rate` without the threshold; `fixed` to `hierarchical_clusters` in every layer.
        hierarchical_clusters: clusters of a layer with grouping `fixed` (Table 1).
        alpha: sensitivity of the affinity to similarity (7); ours.
        delta: standard deviations in the threshold (6); ours.
        radius: pruning radius (11) in units of the layer's mean distance to its centroid; ours: drops none.
        gamma: sharpness of the merge weights (12); infinite keeps the best member alone; ours.
        epsilon: standard deviation of the noise on merged experts' router rows and biases (13).
        merge_weights: `affinity` is (12); the others replace it.
        align_neurons: put each member's neurons in the order of the heaviest member's before averaging.
        score: the method whose scores are a cluster's domain score.
        global_clusters: clusters over all layers (Table 1: 6 or 8).
        global_clustering: how these are found; `kmeans` is the ablation of Table 4.
    """

    grouping: Literal["adaptive", "rate", "fixed"] = "adaptive"
    hierarchical_clusters: int = Field(12, ge=1)
    alpha: float = 1.0
    delta: float = 1.0
    radius: float = Field(inf, ge=0)
    gamma: float = Field(1.0, ge=0)
    epsilon: float = Field(0.0, ge=0)
    merge_weights: Literal["affinity", "frequency", "score", "best"] = "affinity"
    align_neurons: bool = False
    score: _merging.ScoreName = "easy_ep"
    global_clusters: int = Field(6, ge=1)
    global_clustering: Clustering = "ward"

    def merges(self, budget: Budget, layout: MoELayout) -> bool:
        """Return whether the first stage takes experts and makes means of them, as far as the threshold lets it."""
        left = _clusters_left(self, budget, layout)
        return left != layout.num_experts and _merging.averages(self.merge_weights, self.gamma)


def plan(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: PARAMETERS) -> CompressionPlan:
    """Return the plan of both stages.

    Task-specific or task-agnostic is a matter of whose statistics these are: a domain's, or a general corpus's.
    A router's groups are clustered one by one, since experts cannot leave them.

    Raises:
        ParameterError: if the budget does not fit the layout or the clusters.
        StatisticsError: if a sum it needs was not collected.
    """
    layout, embedding_LED = statistics.layout, statistics["embedding"]
    share_LE = layer_shares(_merging.scores_of(parameters.score, statistics, seed), layout)
    clusters = [
        _cluster_layer(embedding_LED[row, :experts], left, layer, layout.num_groups, parameters, seed)
        for row, (layer, experts, left) in enumerate(
            zip(layout.layers, layout.num_experts, _clusters_left(parameters, budget, layout), strict=True)
        )
    ]
    vectors_CD = cluster_vectors(embedding_LED, clusters, layout)
    shared_C = mean_affinity(
        vectors_CD, parameters.global_clusters, parameters.global_clustering, parameters.alpha, seed
    )
    bounds = np.cumsum([len(layer) for layer in clusters])[:-1]
    worth = [
        importance(share_E, layer, shared)
        for share_E, layer, shared in zip(share_LE, clusters, np.split(shared_C, bounds), strict=True)
    ]
    homes = [
        np.array([members[0] * layout.num_groups // experts for members in layer])
        for layer, experts in zip(clusters, layout.num_experts, strict=True)
    ]
    kept = keep_clusters(worth, homes, parameters, budget, layout, seed)
    chosen = [[layer[index] for index in keep] for layer, keep in zip(clusters, kept, strict=True)]
    groups = _merge(chosen, statistics, parameters, seed)
    noise = RouterNoise(parameters.epsilon, seed) if parameters.epsilon else None
    scores_LE = _spread(worth, clusters, share_LE.shape)
    return CompressionPlan(layout, groups, "c_prune", scores_LE, router_noise=noise)


def trees(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: PARAMETERS) -> MergeTrees:
    """Return the merges of the first stage; a layer has as many roots as that leaves clusters."""
    layout, joins = statistics.layout, []
    left_L = _clusters_left(parameters, budget, layout)
    for row, (layer, experts, left) in enumerate(zip(layout.layers, layout.num_experts, left_L, strict=True)):
        history: list[Join] = []
        embedding_ED = statistics["embedding"][row, :experts]
        _cluster_layer(embedding_ED, left, layer, layout.num_groups, parameters, seed, history)
        joins.append(name_joins(history, experts))
    return MergeTrees("1 less the affinity of mean outputs", True, layout.num_experts, tuple(joins))


def _clusters_left(parameters: PARAMETERS, budget: Budget, layout: MoELayout) -> tuple[int, ...]:
    if parameters.grouping == "fixed":
        return tuple(min(parameters.hierarchical_clusters, experts) for experts in layout.num_experts)
    return clusters_to_leave(parameters, budget, layout)


def _cluster_layer(
    embedding_ED: FloatArray,
    left: int,
    layer: int,
    num_groups: int,
    parameters: PARAMETERS,
    seed: int,
    history: list[Join] | None = None,
) -> list[Cluster]:
    """Return a layer's clusters (5-11), one router group after the other, ordered by smallest member."""
    size = len(embedding_ED) // num_groups
    clusters: list[Cluster] = []
    for group in range(num_groups):
        first = group * size
        own_ED = embedding_ED[first : first + size]
        settings = Agglomeration(
            max(1, left // num_groups),
            alpha=parameters.alpha,
            delta=parameters.delta if parameters.grouping == "adaptive" else None,
            radius=inf if parameters.radius == inf else parameters.radius * float(distances_to_mean(own_ED).mean()),
        )
        own: list[Join] = []
        found = cluster_experts(own_ED, settings, (seed, layer, group), own)
        if history is not None:
            history += [(first + one, first + other, alike) for one, other, alike in own]
        clusters += [tuple(first + member for member in members) for members in found]
    return clusters


def cluster_vectors(embedding_LED: FloatArray, clusters: list[list[Cluster]], layout: MoELayout) -> np.ndarray:
    """Return the mean of each cluster's embeddings over the layer's root mean square, float32 `[C, D]`.

    Deeper layers have longer outputs; without the division depth alone would decide who is alike.
    """
    vectors = []
    for row, experts in enumerate(layout.num_experts):
        own_ED = embedding_LED[row, :experts]
        scale = float(np.linalg.norm(own_ED)) / np.sqrt(own_ED.size) or 1.0
        sizes_C = np.array([len(members) for members in clusters[row]])
        sums_CD = np.add.reduceat(own_ED[np.concatenate(clusters[row])], np.cumsum(sizes_C) - sizes_C, axis=0)
        vectors.append((sums_CD / (scale * sizes_C[:, None])).astype(np.float32))
    return np.concatenate(vectors)


def importance(share_E: FloatArray, clusters: list[Cluster], shared_C: FloatArray) -> FloatArray:
    """Return the unified importance of a layer's clusters: their share of its score times what is theirs alone.

    A cluster's share is the sum of its members', since the merged expert gets the tokens of all.
    """
    share_C = np.array([np.sort(share_E[list(members)]).sum() for members in clusters])
    return share_C * (1 - shared_C)


def _merge(
    chosen: list[list[Cluster]], statistics: ExpertStatistics, parameters: PARAMETERS, seed: int
) -> tuple[tuple[ExpertGroup, ...], ...]:
    kind = parameters.merge_weights
    if kind == "affinity":
        embedding_LED = statistics["embedding"]
        return tuple(
            _merge_by_affinity(embedding_LED[row], clusters, parameters, (seed, layer))
            for row, (layer, clusters) in enumerate(zip(statistics.layout.layers, chosen, strict=True))
        )
    values_LE = _merging.merge_values(kind, parameters.score, statistics, seed)
    return tuple(
        _merging.merge_clusters(clusters, values_E, kind, (seed, layer))
        for layer, clusters, values_E in zip(statistics.layout.layers, chosen, values_LE, strict=True)
    )


def _merge_by_affinity(
    embedding_ED: FloatArray, clusters: list[Cluster], parameters: PARAMETERS, seed: tuple[int, ...]
) -> tuple[ExpertGroup, ...]:
    groups = (merge_group(embedding_ED, members, parameters.alpha, parameters.gamma, seed) for members in clusters)
    return tuple(sorted(groups, key=lambda group: group.members))


def _spread(worth: list[FloatArray], clusters: list[list[Cluster]], shape: tuple[int, ...]) -> FloatArray:
    """Return each expert's cluster's importance, `[L, E]`; 0 for those outside the pruning radius."""
    scores_LE = np.zeros(shape)
    for row, layer in enumerate(clusters):
        for value, members in zip(worth[row], layer, strict=True):
            scores_LE[row, list(members)] = value
    return scores_LE
