"""M-SMoE, HC-SMoE and Group&Merge, each against a literal reading."""

from __future__ import annotations

from itertools import combinations
from math import sqrt

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.methods._merging import merge_clusters
from moe_compress.methods.m_smoe import join_dominant
from moe_compress.types import Budget

KEEP = Budget(experts_per_layer=6)


def average_linkage_slowly(distance, count):
    clusters = [(expert,) for expert in range(len(distance))]
    heights = []
    while len(clusters) > count:
        height, a, b = min(
            (np.mean([distance[i][j] for i in a for j in b]), a, b) for a, b in combinations(clusters, 2)
        )
        heights.append(height)
        clusters = [c for c in clusters if c not in (a, b)] + [tuple(sorted(a + b))]
    return set(clusters), heights


def frequency_weights(members, counts):
    return [counts[m] / sum(counts[m] for m in members) for m in members]


def euclidean(phi):
    return [[sqrt(sum((a - b) ** 2)) for b in phi] for a in phi]


@pytest.mark.parametrize("seed", range(4))
def test_hc_smoe_is_average_linkage_of_mean_outputs(seed, make_statistics):
    statistics = make_statistics(seed)
    plan = methods.plan("hc_smoe", statistics, KEEP, 0)
    for phi, counts, groups in zip(statistics["embedding"], statistics["count"], plan.groups, strict=True):
        assert {group.members for group in groups} == average_linkage_slowly(euclidean(phi), 6)[0]
        for group in groups:
            assert group.weights == pytest.approx(frequency_weights(group.members, counts))


@pytest.mark.parametrize("seed", range(4))
def test_a_global_budget_undoes_the_highest_merges(seed, make_statistics):
    statistics = make_statistics(seed)
    plan = methods.plan("hc_smoe", statistics, Budget(experts_per_layer=6, scope="global"), 0)
    undone = []
    for row, phi in enumerate(statistics["embedding"]):
        _, heights = average_linkage_slowly(euclidean(phi), 1)
        highest = sorted(heights, reverse=True)
        total = highest[0] + sum(highest)
        undone += [(height / total, row, count) for count, height in enumerate([highest[0], *highest], start=1)]
    best = sorted((entry for entry in undone if entry[2] > 2), reverse=True)[: 18 - 3 * 2]
    expected = [2 + sum(row == layer for _, row, _ in best) for layer in range(3)]
    assert list(plan.new_layout.num_experts) == expected


@pytest.mark.parametrize("seed", range(4))
def test_group_and_merge_is_average_linkage_of_weights_with_equal_parts(seed, make_statistics):
    statistics = make_statistics(seed)
    plan = methods.plan("group_and_merge", statistics, KEEP, 0)
    for gram, groups in zip(statistics["weight_gram"], plan.groups, strict=True):
        distance = [[1 - gram[i, j] / sqrt(gram[i, i] * gram[j, j]) for j in range(16)] for i in range(16)]
        assert {group.members for group in groups} == average_linkage_slowly(distance, 6)[0]
        assert all(group.weights == (1 / len(group.members),) * len(group.members) for group in groups)


@pytest.mark.parametrize("seed", range(4))
def test_m_smoe_joins_the_most_used_experts_by_router_logits(seed, make_statistics):
    statistics = make_statistics(seed)
    plan = methods.plan("m_smoe", statistics, KEEP, 0)
    for gram, counts, groups in zip(statistics["logit_gram"], statistics["count"], plan.groups, strict=True):
        dominant = sorted(range(16), key=lambda e: -counts[e])[:6]
        clusters = {d: [d] for d in dominant}
        for e in set(range(16)) - set(dominant):
            nearest = max(dominant, key=lambda d: gram[e, d] / sqrt(gram[e, e] * gram[d, d]))
            clusters[nearest].append(e)
        assert {group.members for group in groups} == {tuple(sorted(c)) for c in clusters.values()}
        for group in groups:
            assert group.weights == pytest.approx(frequency_weights(group.members, counts))


def test_experts_join_inside_their_router_group_and_dominant_ones_stay():
    # Expert 1 is most like 2, which is in the other half; dominant 0 and 2 are most like each other.
    alike = np.array([[1, 0.1, 0.9, 0.2], [0.1, 1, 0.8, 0], [0.9, 0.8, 1, 0.3], [0.2, 0, 0.3, 1]])
    assert join_dominant(alike, [0, 2], 2, (0,)) == [[0, 1], [2, 3]]
    assert join_dominant(alike, [0, 2], 4, (0,)) == [[0], [1, 2, 3]]


@pytest.mark.parametrize("kind", ["frequency", "score", "uniform", "best"])
@pytest.mark.parametrize("name", ["hc_smoe", "m_smoe", "group_and_merge"])
def test_weights_are_an_option_of_all(name, kind, make_statistics):
    statistics = make_statistics(3)
    parameters = {"merge_weights": kind, "score": "ean"}
    plan = methods.plan(name, statistics, KEEP, 0, parameters=parameters)
    values = {"frequency": statistics["count"], "uniform": np.ones((3, 16))}.get(kind, statistics["norm"])
    merged = [
        (values[row], group) for row, groups in enumerate(plan.groups) for group in groups if len(group.members) > 1
    ]
    assert plan.is_pruning == (kind == "best") == (not merged)
    for own, group in merged:
        assert group.weights == pytest.approx((own[list(group.members)] / own[list(group.members)].sum()).tolist())


def test_members_without_any_value_weigh_the_same():
    (group,) = merge_clusters([(2, 0)], np.zeros(3), "frequency", (0,))
    assert (group.members, group.weights) == ((0, 2), (0.5, 0.5))


def test_the_best_keeps_the_highest_and_draws_among_equals():
    values = np.array([1.0, 3.0, 2.0])
    assert merge_clusters([(0, 1, 2)], values, "best", (0,))[0].members == (1,)
    drawn = {merge_clusters([(0, 1, 2)], np.ones(3), "best", (seed,))[0].members for seed in range(20)}
    assert drawn == {(0,), (1,), (2,)}


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0, float("inf")])
def test_affinity_weights_are_equation_12_for_what_experts_were_clustered_by(make_statistics, gamma):
    statistics = make_statistics(0)
    given = {"merge_weights": "affinity", "gamma": gamma, "alpha": 2.0}
    for name, sum_name in (("m_smoe", "logit_gram"), ("hc_smoe", "embedding"), ("group_and_merge", "weight_gram")):
        plan = methods.plan(name, statistics, KEEP, 0, parameters=given)
        for values, groups in zip(statistics[sum_name], plan.groups, strict=True):
            gram = values @ values.T if sum_name == "embedding" else values
            for group in (group for group in groups if len(group.members) > 1):
                members, affinity = group.members, []
                squared = sum(gram[i][j] for i in members for j in members) / len(members) ** 2
                for i in members:
                    dot = sum(gram[i][j] for j in members) / len(members)
                    affinity.append(1 / (1 + np.exp(-2.0 * dot / sqrt(gram[i][i] * squared))))
                raw = np.exp(gamma * np.array(affinity))
                assert group.weights == pytest.approx(raw / raw.sum())
        if gamma == float("inf"):
            assert plan.is_pruning


@pytest.mark.parametrize("name", ["m_smoe", "hc_smoe", "group_and_merge", "c_prune"])
def test_aligning_neurons_is_part_of_a_plan_that_merges(make_statistics, name):
    statistics = make_statistics(0)
    plain = methods.plan(name, statistics, KEEP, 0)
    aligned = methods.plan(name, statistics, KEEP, 0, parameters={"align_neurons": True})
    assert aligned.align_neurons and aligned.groups == plain.groups and aligned.digest != plain.digest
    best = {"merge_weights": "best", "align_neurons": True}
    assert not methods.plan(name, statistics, KEEP, 0, parameters=best).align_neurons
