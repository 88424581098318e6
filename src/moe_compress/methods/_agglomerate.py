"""C-Prune's agglomeration of one layer's experts as its paper describes it, equations (5) to (12).

scipy's average linkage breaks ties by its own order and cannot refuse a merge, so the loop is
written out here; without ties and refusals both agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isinf

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from moe_compress.errors import ParameterError
from moe_compress.types import ExpertGroup, FloatArray

Cluster = tuple[int, ...]
Join = tuple[int, int, float]
"""An expert of each of the two clusters merged, and their affinity."""


@dataclass(frozen=True)
class Agglomeration:
    """How one layer's experts are grouped.

    Attributes:
        num_clusters: when merging stops: `E - r`, or a fixed count.
        alpha: sensitivity of the affinity to similarity (7).
        delta: standard deviations in the adaptive threshold (6); None refuses no merge.
        radius: the pruning radius zeta (11); members farther from every centre are dropped. Infinite drops none.
    """

    num_clusters: int
    alpha: float = 1.0
    delta: float | None = None
    radius: float = inf

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise ParameterError(f"num_clusters is {self.num_clusters}; ask for at least 1 cluster (c_prune)")
        if not self.radius >= 0:
            raise ParameterError(f"radius is {self.radius}; give a distance of at least 0 (c_prune)")


def cluster_experts(
    embeddings_ED: FloatArray, settings: Agglomeration, seed: Sequence[int], history: list[Join] | None = None
) -> tuple[Cluster, ...]:
    """Return one layer's clusters by smallest member, without the experts outside the pruning radius (5) to (11).

    Args:
        embeddings_ED: `phi(f_i)` (4), each expert's mean output on the same inputs.
        settings: how to group.
        seed: breaks ties; the run's seed and the layer.
        history: see `agglomerate`.
    """
    squared_EE = squared_distances(embeddings_ED)
    tau = inf if settings.delta is None else adaptive_threshold(embeddings_ED, settings.delta)
    affinity_EE = affinity(embeddings_ED, settings.alpha)
    clusters = agglomerate(affinity_EE, settings.num_clusters, seed, squared_EE, tau, history)
    return tuple(sorted(drop_far_members(clusters, squared_EE, settings.radius, seed)))


def affinity(embeddings_ED: FloatArray, alpha: float) -> FloatArray:
    """Return `A_ij = sigmoid(alpha cos(phi_i, phi_j))` (7), float64 `[E, E]`; cos is 0 where an output is 0."""
    return np.asarray(expit(alpha * cosine(embeddings_ED @ embeddings_ED.T)), dtype=np.float64)


def cosine(gram_EE: FloatArray) -> FloatArray:
    """Return the cosines of vectors from their inner products, symmetric, `[E, E]`; 0 where a vector is 0."""
    norm_E = np.sqrt(gram_EE.diagonal())
    cosine_EE = gram_EE / np.where(norm_E > 0, norm_E, 1.0)[:, None] / np.where(norm_E > 0, norm_E, 1.0)
    return np.asarray((cosine_EE + cosine_EE.T) / 2, dtype=np.float64)


def adaptive_threshold(embeddings_ED: FloatArray, delta: float) -> float:
    """Return `tau = mean_i ||phi_i - phi_bar|| + delta sigma` (6).

    The paper does not define sigma, "the embedding standard deviation"; here it is
    `sqrt(mean_i ||phi_i - phi_bar||^2)`.
    """
    distances_E = distances_to_mean(embeddings_ED)
    return float(distances_E.mean() + delta * np.sqrt(np.mean(distances_E**2)))


def distances_to_mean(embeddings_ED: FloatArray) -> FloatArray:
    """Return `||phi_i - phi_bar||`, float64 `[E]`."""
    return np.asarray(np.linalg.norm(embeddings_ED - embeddings_ED.mean(axis=0), axis=1), dtype=np.float64)


def squared_distances(embeddings_ED: FloatArray) -> FloatArray:
    """Return `||phi_i - phi_j||^2`, float64 `[E, E]`."""
    return distances_of(embeddings_ED @ embeddings_ED.T)


def distances_of(products_EE: FloatArray) -> FloatArray:
    """Return the squared distances of vectors with these inner products, float64 `[E, E]`."""
    norms_E = np.diagonal(products_EE)
    squared_EE = norms_E[:, None] + norms_E[None, :] - (products_EE + products_EE.T)
    np.fill_diagonal(squared_EE, 0.0)
    return np.asarray(np.maximum(squared_EE, 0.0), dtype=np.float64)


def agglomerate(
    affinity_EE: FloatArray,
    num_clusters: int,
    seed: Sequence[int],
    squared_EE: FloatArray | None = None,
    tau: float = inf,
    history: list[Join] | None = None,
) -> tuple[Cluster, ...]:
    """Return clusters of experts, members ascending: the paper's steps 1 to 3, equations (5) and (8) to (10).

    Every expert starts alone; the pair of clusters with the highest affinity merges, and the affinity of the
    merged cluster is the mean of its parts', weighted by their sizes. Equal affinities are ordered by a seeded
    draw of the experts. A merge is refused when it would put an expert farther than `tau` from the centre (5); a
    refused pair is tried again only once one of the two has changed. When all pairs are refused, more clusters
    are left than asked for.

    Args:
        affinity_EE: `A_ij` (7), symmetric.
        num_clusters: when to stop.
        seed: of the draw that orders ties.
        squared_EE: `||phi_i - phi_j||^2`; needed when `tau` is finite.
        tau: the adaptive threshold (6); infinite refuses nothing.
        history: takes in every merge in its turn.

    Raises:
        ParameterError: if a finite threshold comes without distances.
    """
    if squared_EE is None and not isinf(tau):
        raise ParameterError(f"the threshold tau={tau} needs distances to compare; give squared_EE (c_prune)")
    count = len(affinity_EE)
    order = np.random.default_rng(list(seed)).permutation(count)
    linkage = affinity_EE[np.ix_(order, order)].astype(np.float64)
    distance = _Distances(None if squared_EE is None else squared_EE[np.ix_(order, order)], tau)
    slot_E = np.arange(count)  # the cluster of each expert, in the order drawn; the lower slot lives on
    # A pair counts once, above the diagonal; argmax takes the first of equals, in the order drawn.
    upper = np.triu(np.ones_like(linkage, dtype=bool), 1)
    candidates = np.where(upper & distance.allowed_pairs(count), linkage, -inf)
    for _ in range(count - num_clusters):
        first, second = divmod(int(candidates.argmax()), count)
        if candidates[first, second] == -inf:
            break
        if history is not None:
            history.append((int(order[first]), int(order[second]), float(linkage[first, second])))
        _merge(linkage, first, second, int((slot_E == first).sum()), int((slot_E == second).sum()))
        slot_E[slot_E == second] = first
        candidates[second, :] = candidates[:, second] = -inf
        others = np.setdiff1d(slot_E, [first])
        allowed = distance.merge(first, second, slot_E)[others]
        candidates[np.minimum(others, first), np.maximum(others, first)] = np.where(
            allowed, linkage[first, others], -inf
        )
    members = (order[slot_E == slot] for slot in np.unique(slot_E))
    return tuple(sorted(tuple(sorted(cluster.tolist())) for cluster in members))


def name_joins(history: Sequence[Join], num_experts: int) -> FloatArray:
    """Return `[M, 4]`, the merges in their order as `MergeTrees` has them, at the height `1 - affinity`."""
    part_E = np.arange(num_experts)
    joins = []
    for index, (one, other, alike) in enumerate(history):
        parts = part_E[one], part_E[other]
        joins.append((*parts, 1 - alike, 1.0))
        part_E[np.isin(part_E, parts)] = num_experts + index
    return np.array(joins, dtype=np.float64).reshape(-1, 4)


def _merge(linkage: FloatArray, first: int, second: int, size_first: int, size_second: int) -> None:
    """Write the merged cluster's affinities (10) over the first one's."""
    merged = (size_first * linkage[first] + size_second * linkage[second]) / (size_first + size_second)
    linkage[first, :] = linkage[:, first] = merged


class _Distances:
    """Which merges the threshold allows (5), kept up to date with sums of squared distances.

    Attributes:
        sums_CE: `sum_{j in c} ||x - x_j||^2` for each cluster's slot and expert; None when all are allowed.
    """

    def __init__(self, squared_EE: FloatArray | None, tau: float) -> None:
        self.tau = tau
        self.sums_CE = None if squared_EE is None or isinf(tau) else squared_EE.copy()

    def allowed_pairs(self, count: int) -> NDArray[np.bool_]:
        """Return which single experts may merge; each is half their distance from their centre."""
        if self.sums_CE is None:
            return np.ones((count, count), dtype=bool)
        return np.asarray(np.sqrt(self.sums_CE) / 2 <= self.tau)

    def merge(self, first: int, second: int, slot_E: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return per slot whether it may merge with `first`, which has just taken in `second`.

        The farthest member of a union of n experts is at `max_x sum_j ||x - x_j||^2 / n - sum_xj / (2 n^2)`.
        """
        count = len(slot_E)
        if self.sums_CE is None:
            return np.ones(count, dtype=bool)
        self.sums_CE[first] += self.sums_CE[second]
        to_first_E, to_own_E = self.sums_CE[first], self.sums_CE[slot_E, np.arange(count)]
        inside = slot_E == first
        farthest_C = (to_first_E[inside] + self.sums_CE[:, inside]).max(axis=1)
        np.maximum.at(farthest_C, slot_E[~inside], (to_first_E + to_own_E)[~inside])
        within_C = np.bincount(slot_E, to_own_E, minlength=count)
        total_C = within_C[first] + 2 * np.bincount(slot_E, to_first_E, minlength=count) + within_C
        size_C = np.bincount(slot_E, minlength=count) + inside.sum()
        squared_C = farthest_C / size_C - total_C / (2 * size_C**2)
        return np.asarray(np.sqrt(np.maximum(squared_C, 0.0)) <= self.tau)


def _squared_to_center(squared_EE: FloatArray, experts: Sequence[int], members: Sequence[int]) -> FloatArray:
    """Return the experts' squared distances to the members' centre, from distances between experts alone.

    `||x - mu||^2 = mean_j ||x - x_j||^2 - mean_jk ||x_j - x_k||^2 / 2`.
    """
    to_members = squared_EE[np.ix_(experts, members)].mean(axis=1)
    within = squared_EE[np.ix_(members, members)].mean() / 2
    return np.asarray(np.maximum(to_members - within, 0.0), dtype=np.float64)


def drop_far_members(
    clusters: Sequence[Cluster], squared_EE: FloatArray, radius: float, seed: Sequence[int]
) -> tuple[Cluster, ...]:
    """Return the clusters without the experts farther than `radius` from every cluster's centre (11).

    The member nearest its own centre always stays, so that no cluster vanishes; equally near ones are ordered
    by a seeded draw. The paper does not say what becomes of a cluster that would lose all its members.
    """
    if isinf(radius):
        return tuple(clusters)
    experts = range(len(squared_EE))
    to_centers = np.sqrt([_squared_to_center(squared_EE, experts, members) for members in clusters])
    near_E = to_centers.min(axis=0) <= radius
    draw_E = np.random.default_rng(list(seed)).permutation(len(squared_EE))
    kept = []
    for members, to_center_E in zip(clusters, to_centers, strict=True):
        nearest = min(members, key=lambda expert: (to_center_E[expert], draw_E[expert]))
        kept.append(tuple(expert for expert in members if near_E[expert] or expert == nearest))
    return tuple(kept)


def merge_group(
    embeddings_ED: FloatArray, members: Cluster, alpha: float, gamma: float, seed: Sequence[int]
) -> ExpertGroup:
    """Return the members with `w_i = softmax_i(gamma A_ik)` (12), `A_ik` their affinity to the cluster's centre.

    With `gamma` infinite the one with the highest affinity is left alone; equal ones are ordered by a seeded draw.
    """
    if len(members) == 1:
        return ExpertGroup(members)
    unit_MD = _unit(embeddings_ED[list(members)])
    center_D = _unit(embeddings_ED[list(members)].mean(axis=0))
    affinity_M = expit(alpha * (unit_MD @ center_D))
    if isinf(gamma):
        draw_E = np.random.default_rng(list(seed)).permutation(len(embeddings_ED))
        best = np.lexsort((draw_E[list(members)], -affinity_M))[0]
        return ExpertGroup((members[int(best)],))
    return ExpertGroup(members, tuple(softmax(gamma * affinity_M).tolist()))


def _unit(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0), dtype=np.float64)
