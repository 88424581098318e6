"""C-Prune's agglomeration: the paper's loop read slowly, its limits, and what it does with ties."""

from __future__ import annotations

from itertools import combinations
from math import exp, inf, sqrt

import numpy as np
import pytest
from scipy.cluster.hierarchy import average, fcluster
from scipy.spatial.distance import squareform

from moe_compress.errors import ParameterError
from moe_compress.methods._agglomerate import (
    Agglomeration,
    adaptive_threshold,
    affinity,
    agglomerate,
    cluster_experts,
    drop_far_members,
    merge_group,
    squared_distances,
)
from moe_compress.types import ExpertGroup

SEED = (42, 3)


def random_affinity(experts, seed, levels=None):
    """A symmetric matrix of random affinities; with `levels`, only so many different ones, so that most tie."""
    rng = np.random.default_rng(seed)
    values = (
        rng.random((experts, experts)) if levels is None else rng.integers(1, levels + 1, (experts, experts)) / 8
    )
    return np.triu(values, 1) + np.triu(values, 1).T


def agglomerate_slowly(affinity_EE, num_clusters, may_merge=lambda members: True):
    """Steps 1 to 3 as the paper has them: all pairs looked at before each merge, dictionaries of affinities."""
    draw = np.random.default_rng(list(SEED)).permutation(len(affinity_EE)).tolist()
    clusters = [(expert,) for expert in draw]  # in the order drawn, which decides between equals
    between = {frozenset([a, b]): affinity_EE[a[0], b[0]] for a, b in combinations(clusters, 2)}
    while len(clusters) > num_clusters:
        allowed = [(a, b) for a, b in combinations(clusters, 2) if may_merge(a + b)]
        if not allowed:
            break
        u, v = max(allowed, key=lambda pair: between[frozenset(pair)])  # the first of equals
        new = u + v
        for other in clusters:
            if other not in (u, v):
                towards_u, towards_v = between[frozenset([u, other])], between[frozenset([v, other])]
                between[frozenset([new, other])] = (len(u) * towards_u + len(v) * towards_v) / (len(u) + len(v))
        clusters[clusters.index(u)] = new
        clusters.remove(v)
    return tuple(sorted(tuple(sorted(members)) for members in clusters))


@pytest.mark.parametrize("num_clusters", [1, 4, 9, 12])
@pytest.mark.parametrize("levels", [None, 1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_agglomeration_is_the_papers_loop(seed, levels, num_clusters):
    affinity_EE = random_affinity(12, seed, levels)
    clusters = agglomerate(affinity_EE, num_clusters, SEED)
    assert clusters == agglomerate_slowly(affinity_EE, num_clusters)
    assert len(clusters) == num_clusters
    assert sorted(expert for members in clusters for expert in members) == list(range(12))


@pytest.mark.parametrize("seed", range(4))
def test_without_ties_it_is_scipys_average_linkage(seed):
    affinity_EE = random_affinity(20, seed)
    distances = 1 - affinity_EE
    np.fill_diagonal(distances, 0.0)
    labels = fcluster(average(squareform(distances, checks=False)), 6, "maxclust")
    expected = {tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
    assert set(agglomerate(affinity_EE, 6, SEED)) == expected


def test_as_many_clusters_as_experts_merges_none():
    assert agglomerate(random_affinity(5, 0), 5, SEED) == ((0,), (1,), (2,), (3,), (4,))


def test_ties_do_not_favour_low_expert_ids():
    ones = np.ones((16, 16))
    first = [
        next(members for members in agglomerate(ones, 15, (seed, 0)) if len(members) == 2) for seed in range(20)
    ]
    assert len(set(first)) > 10


def test_permuting_experts_permutes_the_clusters():
    affinity_EE, order = random_affinity(20, 1), np.random.default_rng(2).permutation(20)
    permuted = agglomerate(affinity_EE[np.ix_(order, order)], 7, SEED)
    renamed = {tuple(sorted(order[list(members)].tolist())) for members in permuted}
    assert renamed == set(agglomerate(affinity_EE, 7, SEED))


def center_distance(embeddings, expert, members):
    center = sum(embeddings[member] for member in members) / len(members)
    return sqrt(sum((embeddings[expert] - center) ** 2))


@pytest.mark.parametrize("delta", [-0.6, -0.3, 0.0])
@pytest.mark.parametrize("seed", range(4))
def test_refusals_are_the_papers_threshold(seed, delta):
    embeddings = np.random.default_rng(seed).normal(size=(14, 5))
    tau = adaptive_threshold(embeddings, delta)
    affinity_EE = affinity(embeddings, 2.0)

    def may_merge(members):
        return all(center_distance(embeddings, expert, members) <= tau for expert in members)

    clusters = agglomerate(affinity_EE, 2, SEED, squared_distances(embeddings), tau)
    assert clusters == agglomerate_slowly(affinity_EE, 2, may_merge)
    assert all(may_merge(members) for members in clusters)
    free = agglomerate(affinity_EE, 2, SEED)
    assert clusters != free


def test_a_threshold_no_merge_meets_leaves_all_alone():
    embeddings = np.random.default_rng(0).normal(size=(6, 3))
    assert len(agglomerate(affinity(embeddings, 1.0), 2, SEED, squared_distances(embeddings), 0.0)) == 6


def test_a_threshold_without_distances_is_refused():
    with pytest.raises(ParameterError, match=r"tau=1\.5 needs distances"):
        agglomerate(random_affinity(4, 0), 2, SEED, tau=1.5)


def test_the_threshold_by_hand():
    # Centre (1, 0); distances 1, 1, 1, 1: mean 1, standard deviation of the embeddings 1.
    square = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    assert adaptive_threshold(square, 0.5) == pytest.approx(1.5)
    # Centre 3; distances 3, 3, 0: mean 2, root mean square sqrt(6).
    line = np.array([[0.0], [6.0], [3.0]])
    assert adaptive_threshold(line, 2.0) == pytest.approx(2 + 2 * sqrt(6))


def test_affinity_is_its_equation():
    embeddings = np.random.default_rng(3).normal(size=(6, 4))
    embeddings[4] = 0.0
    values = affinity(embeddings, 1.7)
    for i in range(6):
        for j in range(6):
            norms = sqrt(sum(embeddings[i] ** 2)) * sqrt(sum(embeddings[j] ** 2))
            cosine = sum(embeddings[i] * embeddings[j]) / norms if norms else 0.0
            assert values[i, j] == pytest.approx(1 / (1 + exp(-1.7 * cosine)))
    np.testing.assert_array_equal(values, values.T)


def test_squared_distances_are_distances():
    embeddings = np.random.default_rng(4).normal(size=(5, 7))
    expected = [[sum((a - b) ** 2) for b in embeddings] for a in embeddings]
    np.testing.assert_allclose(squared_distances(embeddings), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_members_outside_the_radius_of_every_centre_go(seed):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(12, 3))
    clusters = ((0, 1, 2, 3, 4), (5, 6, 7, 8), (9, 10), (11,))
    radius = 1.3
    kept = drop_far_members(clusters, squared_distances(embeddings), radius, SEED)
    for members, left in zip(clusters, kept, strict=True):
        near = {
            expert
            for expert in members
            if min(center_distance(embeddings, expert, cluster) for cluster in clusters) <= radius
        }
        own = [center_distance(embeddings, expert, members) for expert in members]
        # One nearest member always stays.
        assert near <= set(left) <= near | {members[i] for i in range(len(own)) if own[i] <= min(own) + 1e-9}
        assert left
    assert sum(map(len, kept)) < 12


def test_an_infinite_radius_drops_none_and_zero_leaves_one_each():
    squared = squared_distances(np.random.default_rng(0).normal(size=(6, 3)))
    clusters = ((0, 3), (1, 2, 4), (5,))
    assert drop_far_members(clusters, squared, inf, SEED) == clusters
    assert [len(members) for members in drop_far_members(clusters, squared, 0.0, SEED)] == [1, 1, 1]


def center_affinities(embeddings, members, alpha):
    center = sum(embeddings[member] for member in members) / len(members)
    cosines = [
        sum(embeddings[member] * center) / sqrt(sum(embeddings[member] ** 2)) / sqrt(sum(center**2))
        for member in members
    ]
    return [1 / (1 + exp(-alpha * cosine)) for cosine in cosines]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 30.0])
def test_merge_weights_are_their_equation(gamma):
    embeddings, members = np.random.default_rng(5).normal(size=(8, 4)), (1, 4, 6)
    group = merge_group(embeddings, members, 1.5, gamma, SEED)
    powers = [exp(gamma * value) for value in center_affinities(embeddings, members, 1.5)]
    assert group.members == members
    assert group.weights == pytest.approx([power / sum(powers) for power in powers])
    assert sum(group.weights) == pytest.approx(1.0)


def group_experts(embeddings, settings, gamma):
    clusters = cluster_experts(embeddings, settings, SEED)
    return tuple(merge_group(embeddings, members, settings.alpha, gamma, SEED) for members in clusters)


@pytest.mark.parametrize("seed", range(5))
def test_gamma_to_infinity_is_pruning(seed):
    embeddings = np.random.default_rng(seed).normal(size=(16, 6))
    pruned = group_experts(embeddings, Agglomeration(7, alpha=2.0), inf)
    merged = group_experts(embeddings, Agglomeration(7, alpha=2.0), 1e7)
    assert all(len(group.members) == 1 and group.weights == (1.0,) for group in pruned)
    heaviest = {group.members[int(np.argmax(group.weights))] for group in merged}
    assert heaviest == {group.members[0] for group in pruned}
    assert all(max(group.weights) == pytest.approx(1.0) for group in merged)
    for group in merged:
        values = center_affinities(embeddings, group.members, 2.0)
        assert group.members[int(np.argmax(values))] in heaviest


def test_equal_members_are_drawn():
    same = np.ones((8, 2))
    kept = {merge_group(same, tuple(range(8)), 1.0, inf, (seed,)).members for seed in range(30)}
    assert len(kept) > 3


def test_keeping_all_is_the_identity():
    embeddings = np.random.default_rng(6).normal(size=(9, 4))
    groups = group_experts(embeddings, Agglomeration(9, delta=1.0), 1.0)
    assert groups == tuple(ExpertGroup((expert,)) for expert in range(9))


def test_groups_permute_with_the_experts():
    embeddings, order = np.random.default_rng(7).normal(size=(16, 5)), np.random.default_rng(8).permutation(16)
    settings = Agglomeration(6, delta=0.1, radius=2.5)

    def weights_by_expert(groups, names):
        return {
            frozenset(
                (names[member], round(weight, 9)) for member, weight in zip(g.members, g.weights, strict=True)
            )
            for g in groups
        }

    plain = weights_by_expert(group_experts(embeddings, settings, 3.0), range(16))
    assert weights_by_expert(group_experts(embeddings[order], settings, 3.0), order.tolist()) == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 0}, "num_clusters is 0"),
        ({"num_clusters": 4, "radius": -1.0}, r"radius is -1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ParameterError, match=message):
        Agglomeration(**settings)
