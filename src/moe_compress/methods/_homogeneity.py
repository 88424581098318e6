"""How alike clusters of all layers are: C-Prune's second clustering, and what a cluster shares with its like."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.special import expit
from sklearn.cluster import KMeans

from moe_compress.types import FloatArray

Clustering = Literal["ward", "average", "kmeans"]


def mean_affinity(
    vectors_CD: NDArray[np.float32], num_clusters: int, clustering: Clustering, alpha: float, seed: int
) -> FloatArray:
    """Return each vector's mean affinity (7) to the others of its global cluster, float64 `[C]`; 0 when alone.

    Products are float32: over a large model's layers there are 10^8 pairs.

    Args:
        vectors_CD: one vector per cluster that the first stage left, of all layers.
        num_clusters: global clusters, at most.
        clustering: how they are found.
        alpha: sensitivity of the affinity (7).
        seed: of the order that breaks ties, and of k-means.
    """
    products_CC = None
    if clustering == "kmeans":
        count = min(num_clusters, len(vectors_CD))
        label_C = KMeans(count, n_init=4, random_state=seed).fit_predict(vectors_CD)
    else:
        products_CC = vectors_CD @ vectors_CD.T
        label_C = _hierarchical(products_CC, num_clusters, clustering, seed)
    shared_C = np.zeros(len(vectors_CD))
    for label in np.unique(label_C):
        members = np.flatnonzero(label_C == label)
        if len(members) > 1:
            if products_CC is None:
                products_MM = vectors_CD[members] @ vectors_CD[members].T
            else:
                products_MM = products_CC[np.ix_(members, members)]
            shared_C[members] = _mean_to_others(products_MM, alpha)
    return shared_C


def _mean_to_others(products_MM: NDArray[np.float32], alpha: float) -> FloatArray:
    """Return each vector's mean affinity to the others, from inner products, which are overwritten."""
    norm_M = np.sqrt(np.maximum(products_MM.diagonal(), np.finfo(np.float32).tiny))
    products_MM /= norm_M[:, None]
    products_MM /= norm_M
    products_MM *= alpha
    affinity_MM = expit(products_MM, out=products_MM)
    others_M = affinity_MM.sum(axis=1, dtype=np.float64) - affinity_MM.diagonal()
    return np.asarray(others_M / (len(others_M) - 1), dtype=np.float64)


def _hierarchical(products_CC: NDArray[np.float32], num_clusters: int, method: str, seed: int) -> NDArray[np.int32]:
    """Return labels from scipy's linkage of euclidean distances; it sees the vectors in a seeded order."""
    count = len(products_CC)
    if count == 1:
        return np.ones(1, dtype=np.int32)
    order = np.random.default_rng(seed).permutation(count)
    tree = linkage(_condensed_distances(products_CC, order), method)
    label_C = np.empty(count, dtype=np.int32)
    label_C[order] = fcluster(tree, num_clusters, "maxclust")
    return label_C


def _condensed_distances(products_CC: NDArray[np.float32], order: np.ndarray) -> FloatArray:
    """Return `||x_i - x_j||` for the pairs above the diagonal, row by row, rows and columns in `order`."""
    count = len(order)
    condensed = np.empty(count * (count - 1) // 2)
    squared_C = products_CC.diagonal()[order].astype(np.float64)
    start = 0
    for row in range(count - 1):
        rest = condensed[start : start + count - row - 1]
        np.multiply(products_CC[order[row], order[row + 1 :]], -2.0, out=rest)
        rest += squared_C[row] + squared_C[row + 1 :]
        start += len(rest)
    return np.sqrt(np.maximum(condensed, 0.0, out=condensed), out=condensed)
