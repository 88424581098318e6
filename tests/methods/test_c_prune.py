"""C-Prune's two stages against its paper read literally, and what its parameters do."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import exp, inf, sqrt

import numpy as np
import pytest
from sklearn.cluster import KMeans

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.types import Budget, RouterNoise

HALF = Budget(fraction_dropped=0.5)


def cosine(a, b):
    return sum(a * b) / sqrt(sum(a**2)) / sqrt(sum(b**2))


def sigmoid(x):
    return 1 / (1 + exp(-x))


def layer_stage_slowly(phi, num_clusters, alpha, delta):
    """Steps 1 to 3 with the threshold (5, 6): merge the best pair that keeps all members within tau."""
    experts = range(len(phi))
    between = {(i, j): sigmoid(alpha * cosine(phi[i], phi[j])) for i in experts for j in experts}
    center = sum(phi) / len(phi)
    far = [sqrt(sum((row - center) ** 2)) for row in phi]
    tau = sum(far) / len(far) + delta * sqrt(sum(d * d for d in far) / len(far))
    clusters = [(expert,) for expert in experts]
    while len(clusters) > num_clusters:
        allowed = []
        for a, b in combinations(clusters, 2):
            mean = sum(phi[m] for m in a + b) / len(a + b)
            if all(sqrt(sum((phi[m] - mean) ** 2)) <= tau for m in a + b):
                # Average linkage (10) is the mean over all pairs of members.
                allowed.append((sum(between[i, j] for i in a for j in b) / len(a) / len(b), a, b))
        if not allowed:
            break
        _, a, b = max(allowed)
        clusters = [c for c in clusters if c not in (a, b)] + [tuple(sorted(a + b))]
    return sorted(clusters)


def global_clusters_slowly(vectors, num_clusters):
    """Ward's method: merge the two clusters whose union adds least to the squared distances from centres."""
    clusters = [[index] for index in range(len(vectors))]

    def cost(a, b):
        gap = vectors[a].mean(axis=0) - vectors[b].mean(axis=0)
        return len(a) * len(b) / (len(a) + len(b)) * sum(gap**2)

    while len(clusters) > num_clusters:
        a, b = min(combinations(clusters, 2), key=lambda pair: cost(*pair))
        clusters = [c for c in clusters if c not in (a, b)] + [a + b]
    return clusters


def average_clusters_slowly(vectors, num_clusters):
    """Average linkage: merge the two clusters whose members are closest to each other on average."""
    clusters = [[index] for index in range(len(vectors))]

    def cost(a, b):
        return sum(sqrt(sum((vectors[i] - vectors[j]) ** 2)) for i in a for j in b) / len(a) / len(b)

    while len(clusters) > num_clusters:
        a, b = min(combinations(clusters, 2), key=lambda pair: cost(*pair))
        clusters = [c for c in clusters if c not in (a, b)] + [a + b]
    return clusters


def k_means_slowly(vectors, num_clusters):
    labels = KMeans(num_clusters, n_init=4, random_state=0).fit_predict(vectors.astype(np.float32))
    return [np.flatnonzero(labels == label).tolist() for label in sorted(set(labels))]


GLOBAL = {"ward": global_clusters_slowly, "average": average_clusters_slowly, "kmeans": k_means_slowly}


def within_radius_slowly(phi, clusters, radius):
    """Leave out the experts farther than the radius from every centre (11); the one nearest its own stays."""
    center = sum(phi) / len(phi)
    zeta = radius * sum(sqrt(sum((row - center) ** 2)) for row in phi) / len(phi)
    centers = [sum(phi[m] for m in members) / len(members) for members in clusters]
    kept = []
    for members, own in zip(clusters, centers, strict=True):
        nearest = min(members, key=lambda m: sum((phi[m] - own) ** 2))
        far = [m for m in members if min(sqrt(sum((phi[m] - c) ** 2)) for c in centers) > zeta]
        kept.append(tuple(m for m in members if m not in far or m == nearest))
    return kept


def plan_slowly(
    statistics,
    left,
    keep,
    alpha=1.0,
    delta=1.0,
    gamma=1.0,
    num_clusters=6,
    radius=inf,
    clustering="ward",
    score="gate_norm_change",
):
    phi = statistics["embedding"]
    scores = statistics[score]
    layers = [layer_stage_slowly(phi[row], left, alpha, delta) for row in range(len(phi))]
    layers = [within_radius_slowly(phi[row], clusters, radius) for row, clusters in enumerate(layers)]
    owner, vectors, shares = [], [], []
    for row, clusters in enumerate(layers):
        rms = sqrt(np.mean(phi[row] ** 2))
        for members in clusters:
            owner.append((row, members))
            vectors.append(sum(phi[row, m] for m in members) / len(members) / rms)
            shares.append(sum(scores[row, m] for m in members) / sum(scores[row]))
    importance = {}
    for cluster in GLOBAL[clustering](np.array(vectors), num_clusters):
        for one in cluster:
            others = [sigmoid(alpha * cosine(vectors[one], vectors[two])) for two in cluster if two != one]
            alike = sum(others) / len(others) if others else 0.0
            importance[owner[one]] = shares[one] * (1 - alike)
    plan = []
    for row, clusters in enumerate(layers):
        best = sorted(clusters, key=lambda members: -importance[row, members])[:keep]
        groups = {}
        for members in best:
            center = sum(phi[row, m] for m in members) / len(members)
            powers = [exp(gamma * sigmoid(alpha * cosine(phi[row, m], center))) for m in members]
            groups[members] = [power / sum(powers) for power in powers]
        plan.append(groups)
    return plan, importance


@pytest.mark.parametrize(
    ("parameters", "slowly"),
    [
        ({}, {}),
        (
            {"alpha": 3.0, "gamma": 20.0, "delta": -0.4, "global_clusters": 4},
            {"alpha": 3.0, "gamma": 20.0, "delta": -0.4, "num_clusters": 4},
        ),
        ({"grouping": "rate", "gamma": 0.0}, {"delta": 1e9, "gamma": 0.0}),
        ({"grouping": "fixed", "hierarchical_clusters": 10, "delta": -9.0}, {"left": 10, "delta": 1e9}),
        ({"grouping": "rate", "radius": 0.7, "layer_rate": 0.4}, {"left": 10, "delta": 1e9, "radius": 0.7}),
        ({"global_clustering": "average", "global_clusters": 8}, {"clustering": "average", "num_clusters": 8}),
        ({"global_clustering": "kmeans", "score": "ean"}, {"clustering": "kmeans", "score": "norm"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(4))
def test_both_stages_are_the_papers(seed, parameters, slowly, make_statistics):
    statistics = make_statistics(seed)
    plan = methods.plan("c_prune", statistics, HALF, 0, parameters=parameters)
    # 8 of 16 go; with rates 0.1 and 0.1 the first stage takes 0.1 / 0.19 of them: int(4.2) = 4 leave 12 clusters;
    # with 0.4 and 0.1 it takes 0.4 / 0.46: int(6.96) = 6 leave 10.
    slow, importance = plan_slowly(statistics, **{"left": 12, "keep": 8, **slowly})
    for row, expected in enumerate(slow):
        found = {group.members: group.weights for group in plan.groups[row]}
        assert set(found) == set(expected)
        for members, weights in expected.items():
            assert found[members] == pytest.approx(weights)
    for (row, members), value in importance.items():
        assert plan.scores[row, list(members)] == pytest.approx(value, rel=1e-4)


def test_a_global_budget_takes_the_best_clusters_of_all_layers(make_statistics):
    statistics = make_statistics(2)
    plan = methods.plan("c_prune", statistics, replace(HALF, scope="global"), 0)
    _, importance = plan_slowly(statistics, 12, 8)
    best = sorted(importance, key=lambda key: -importance[key])[:24]
    counts = [sum(row == layer for row, _ in best) for layer in range(3)]
    assert min(counts) >= 2  # the floors are out of play
    found = {(row, group.members) for row, groups in enumerate(plan.groups) for group in groups}
    assert found == set(best)


def test_router_groups_are_each_clustered_and_pruned_alone(make_statistics):
    """4 groups of 6, keep 12: the first stage takes int(12 * 0.1 / 0.19) = 6, so 18 clusters, in steps of 4 20."""
    statistics = make_statistics(7, num_groups=4, topk_groups=2, experts=24)
    plan = methods.plan("c_prune", statistics, HALF, 0)
    for row, groups in enumerate(plan.groups):
        for home in range(4):
            phi = statistics["embedding"][row, home * 6 : home * 6 + 6]
            allowed = {tuple(home * 6 + m for m in c) for c in layer_stage_slowly(phi, 5, 1.0, 1.0)}
            found = {group.members for group in groups if group.members[0] // 6 == home}
            assert len(found) == 3 and found <= allowed


def test_gamma_to_infinity_is_pruning(make_statistics):
    statistics = make_statistics(1)
    pruned = methods.plan("c_prune", statistics, HALF, 0, parameters={"gamma": inf})
    merged = methods.plan("c_prune", statistics, HALF, 0, parameters={"gamma": 1e7})
    assert pruned.is_pruning and not merged.is_pruning
    assert all(groups == tuple(sorted(groups, key=lambda group: group.members)) for groups in pruned.groups)
    for single, groups in zip(pruned.groups, merged.groups, strict=True):
        heaviest = {group.members[int(np.argmax(group.weights))] for group in groups}
        assert heaviest == {group.members[0] for group in single}


def test_epsilon_is_noise_from_the_runs_seed_and_zero_is_none(make_statistics):
    statistics = make_statistics(1)
    plans = [methods.plan("c_prune", statistics, HALF, 7, parameters={"epsilon": 0.0}) for _ in range(2)]
    assert plans[0].digest == plans[1].digest
    assert plans[0].router_noise is None
    noisy = [methods.plan("c_prune", statistics, HALF, seed, parameters={"epsilon": 0.1}) for seed in (7, 7, 8)]
    assert [plan.router_noise for plan in noisy] == [RouterNoise(0.1, seed) for seed in (7, 7, 8)]
    assert noisy[0].groups == plans[0].groups
    assert len({plan.digest for plan in [*plans, *noisy]}) == 3


def test_rates_are_the_papers_when_they_are_followed(make_statistics):
    statistics = make_statistics(3, layers=4, experts=20)
    rates = {"follow": "rates", "grouping": "rate"}
    # round(0.1 * 20) = 2 leave 18 clusters; of 72 round(7.2) = 7 go, of 18 round(1.8) = 2.
    over_all = methods.plan("c_prune", statistics, replace(HALF, scope="global"), 0, parameters=rates)
    assert sum(over_all.new_layout.num_experts) == 65
    each = methods.plan("c_prune", statistics, HALF, 0, parameters=rates)
    assert each.new_layout.num_experts == (16,) * 4
    more = methods.plan("c_prune", statistics, HALF, 0, parameters={**rates, "layer_rate": 0.3, "global_rate": 0.0})
    assert more.new_layout.num_experts == (14,) * 4


def test_rates_share_a_budget_between_the_stages(make_statistics):
    statistics = make_statistics(3)
    only_second = {"layer_rate": 0.0, "global_rate": 0.5}
    only_first = {"layer_rate": 0.5, "global_rate": 0.0, "grouping": "rate"}
    assert methods.plan("c_prune", statistics, HALF, 0, parameters=only_second).is_pruning
    merged = methods.plan("c_prune", statistics, HALF, 0, parameters=only_first)
    assert [len(kept) for kept in merged.kept] == [16] * 3
    neither = methods.plan("c_prune", statistics, HALF, 0, parameters={"layer_rate": 0.0, "global_rate": 0.0})
    assert neither.is_pruning


def test_fixed_grouping_leaves_the_clusters_it_names(make_statistics):
    fixed = {"grouping": "fixed", "hierarchical_clusters": 8, "delta": 0.0}
    plan = methods.plan("c_prune", make_statistics(), HALF, 0, parameters=fixed)
    assert [len(kept) for kept in plan.kept] == [16] * 3
    with pytest.raises(ParameterError, match="layer 1 is to keep 8 experts, but the first stage leaves 7 clusters"):
        methods.plan("c_prune", make_statistics(), HALF, 0, parameters={**fixed, "hierarchical_clusters": 7})
    over = replace(HALF, scope="global")
    with pytest.raises(ParameterError, match="keeps 24 experts of all layers, but the first stage leaves 21"):
        methods.plan("c_prune", make_statistics(), over, 0, parameters={**fixed, "hierarchical_clusters": 7})


@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_fewer_clusters_than_a_layer_has_to_keep_are_refused(scope, make_statistics):
    # A tenth of 40 experts are 4, more than 3 clusters: the second stage would have nothing to choose from.
    statistics = make_statistics(experts=40)
    parameters = {"follow": "rates", "grouping": "fixed", "hierarchical_clusters": 3}
    with pytest.raises(ParameterError, match="layer 1 is to keep 4 experts, but the first stage leaves 3 clusters"):
        methods.plan("c_prune", statistics, replace(HALF, scope=scope), 0, parameters=parameters)


def test_members_outside_the_radius_are_dropped_and_not_merged(make_statistics):
    statistics, rate = make_statistics(), {"grouping": "rate", "global_rate": 0.0, "layer_rate": 0.5}
    near = methods.plan("c_prune", statistics, HALF, 0, parameters={**rate, "radius": 0.5})
    assert all(8 <= len(kept) < 16 for kept in near.kept)
    assert all(groups == tuple(sorted(groups, key=lambda group: group.members)) for groups in near.groups)
    nearest = methods.plan("c_prune", statistics, HALF, 0, parameters={**rate, "radius": 0.0})
    assert nearest.is_pruning


def test_embeddings_may_be_sums_or_means(make_statistics):
    statistics = make_statistics(4)
    scaled = replace(statistics, sums={**statistics.sums, "embedding": statistics["embedding"] * 2048})
    parameters = {"radius": 0.8, "delta": -0.2}
    plans = [methods.plan("c_prune", each, HALF, 0, parameters=parameters) for each in (statistics, scaled)]
    assert plans[0].kept == plans[1].kept


@pytest.mark.parametrize(
    ("kind", "name"), [("frequency", "count"), ("score", "gate_norm_change"), ("best", "gate_norm_change")]
)
def test_other_weights_replace_the_papers(kind, name, make_statistics):
    statistics = make_statistics(5)
    plan = methods.plan("c_prune", statistics, HALF, 0, parameters={"merge_weights": kind})
    papers = methods.plan("c_prune", statistics, HALF, 0)
    for values, groups, same in zip(statistics[name], plan.groups, papers.groups, strict=True):
        for group, clustered in zip(
            sorted(groups, key=lambda g: g.members), sorted(same, key=lambda g: g.members), strict=True
        ):
            if kind == "best":
                continue
            assert group.members == clustered.members
            own = values[list(group.members)]
            assert group.weights == pytest.approx((own / own.sum()).tolist())
        if kind == "best":
            winners = {max(group.members, key=lambda m: values[m]) for group in same}
            assert {group.members[0] for group in groups} == winners
            assert all(group.weights == (1.0,) for group in groups)


def test_a_score_must_come_from_a_method_that_scores(make_statistics):
    with pytest.raises(ParameterError, match="'score' is 'hc_smoe', which plans by itself"):
        methods.plan("c_prune", make_statistics(), HALF, 0, parameters={"score": "hc_smoe"})


def test_another_score_decides_what_stays(make_statistics):
    statistics = make_statistics(6)
    kept = [
        methods.plan("c_prune", statistics, HALF, 0, parameters={"score": score}).kept
        for score in ("easy_ep", "frequency")
    ]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("clustering", ["average", "kmeans"])
def test_other_global_clusterings_keep_the_budget(clustering, make_statistics):
    parameters = {"global_clustering": clustering, "global_clusters": 8}
    plan = methods.plan("c_prune", make_statistics(), HALF, 0, parameters=parameters)
    assert plan.new_layout.num_experts == (8,) * 3


@pytest.mark.parametrize("fraction", [0.0, 0.125, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("parameters", [{}, {"gamma": inf}, {"grouping": "rate"}])
def test_whether_experts_may_be_merged_is_known_before_anything_is_collected(make_statistics, fraction, parameters):
    statistics, budget = make_statistics(), Budget(fraction_dropped=fraction)
    expected = methods.check_parameters("c_prune", parameters).merges(budget, statistics.layout)
    plan = methods.plan("c_prune", statistics, budget, 0, parameters=parameters)
    is_merged = any(len(group.members) > 1 for layer in plan.groups for group in layer)
    assert expected or not is_merged
    assert is_merged or not expected or parameters != {"grouping": "rate"}  # no threshold keeps clusters apart
