"""The second clustering and mean affinities, against scipy and loops on the same vectors."""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans

from moe_compress.methods._homogeneity import mean_affinity


def mean_affinity_slowly(vectors, labels, alpha):
    shared = []
    for one, label in enumerate(labels):
        others = [two for two in range(len(labels)) if two != one and labels[two] == label]
        cosines = [
            sum(vectors[one] * vectors[two]) / sqrt(sum(vectors[one] ** 2) * sum(vectors[two] ** 2))
            for two in others
        ]
        values = [1 / (1 + exp(-alpha * cosine)) for cosine in cosines]
        shared.append(sum(values) / len(values) if values else 0.0)
    return shared


@pytest.mark.parametrize("method", ["ward", "average"])
@pytest.mark.parametrize("seed", range(3))
def test_hierarchical_clusters_are_scipys(seed, method):
    vectors = np.random.default_rng(seed).normal(size=(30, 5)).astype(np.float32)
    labels = fcluster(linkage(vectors.astype(float), method), 6, "maxclust")
    found = mean_affinity(vectors, 6, method, 2.0, seed)
    np.testing.assert_allclose(found, mean_affinity_slowly(vectors.astype(float), labels, 2.0), rtol=1e-5)


def test_k_means_is_scikit_learns():
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    labels = KMeans(4, n_init=4, random_state=3).fit_predict(vectors)
    found = mean_affinity(vectors, 4, "kmeans", 1.0, 3)
    np.testing.assert_allclose(found, mean_affinity_slowly(vectors.astype(float), labels, 1.0), rtol=1e-5)


@pytest.mark.parametrize("method", ["ward", "kmeans"])
def test_one_cluster_shares_with_none(method):
    assert mean_affinity(np.ones((1, 3), dtype=np.float32), 6, method, 1.0, 0).tolist() == [0.0]


def test_vectors_of_zero_have_no_direction():
    vectors = np.zeros((4, 3), dtype=np.float32)
    # A cosine of 0 is an affinity of sigmoid(0).
    assert mean_affinity(vectors, 1, "ward", 1.0, 0).tolist() == [0.5] * 4
