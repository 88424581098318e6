"""The published C-Prune from experts' outputs: its clusters read literally, and its plans."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from moe_compress import methods
from moe_compress.errors import ParameterError, StatisticsError
from moe_compress.methods._released_clusters import cluster_batch
from moe_compress.methods._released_votes import prune_each_layer, prune_over_layers
from moe_compress.types import Budget, ExpertStatistics, MoELayout

PARAMETERS = {"clusters": 5, "global_clusters": 6, "layer_rate": 0.2, "global_rate": 0.2}


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_ward_on_rows_of_distances(seed):
    vectors = np.random.default_rng(seed).normal(size=(14, 6))
    distances = np.array([[sqrt(sum((a - b) ** 2)) for b in vectors] for a in vectors])
    labels = _ward_of_rows(distances)
    found = cluster_batch(vectors @ vectors.T, 5)
    assert [label for label, _ in found] == labels
    for expert, (label, distance) in enumerate(found):
        members = [other for other in range(14) if labels[other] == label]
        center = sum(vectors[member] for member in members) / len(members)
        assert distance == pytest.approx(sqrt(sum((vectors[expert] - center) ** 2)), abs=1e-9)


def _ward_of_rows(distances):
    between = [sqrt(sum((a - b) ** 2)) for i, a in enumerate(distances) for b in distances[i + 1 :]]
    return fcluster(linkage(between, "ward"), 5, "maxclust").tolist()


def cluster_layers(statistics, clusters=5):
    """Layer -> batches of clusters, each from its own block of the products."""
    gram = statistics["pooled_gram"]
    return {
        row + 1: [cluster_batch(gram[row, :, batch, row], clusters) for batch in range(gram.shape[2])]
        for row in range(len(gram))
    }


def test_one_expert_is_its_own_cluster():
    assert cluster_batch(np.full((1, 1), 4.0), 3) == [(1, 0.0)]


def test_following_the_rates_is_the_published_voting(make_statistics):
    statistics = make_statistics(1, layers=4)
    plan = methods.plan(
        "c_prune_released",
        statistics,
        Budget(fraction_dropped=0.5),
        0,
        parameters={**PARAMETERS, "follow": "rates"},
    )
    gram = statistics["pooled_gram"]
    pruned = prune_each_layer(cluster_layers(statistics), 0.2)
    left = [(layer - 1, e) for layer in (1, 2, 3, 4) for e in range(16) if e not in pruned[layer]]
    over = [
        cluster_batch(np.array([[gram[*one, batch, *other] for other in left] for one in left]), 6)
        for batch in range(gram.shape[2])
    ]
    gone = prune_over_layers(over, pruned, 16, 0.2, 0.2)
    assert plan.kept == tuple(tuple(e for e in range(16) if e not in gone[layer]) for layer in (1, 2, 3, 4))


def test_following_the_budget_drops_the_layer_stages_first(make_statistics):
    statistics = make_statistics(2)
    pruned = prune_each_layer(cluster_layers(statistics), 0.2)
    budget = Budget(experts_per_layer=13)  # int(0.2 * 16) = 3 go: the layer stage's
    plan = methods.plan("c_prune_released", statistics, budget, 0, parameters=PARAMETERS)
    assert plan.kept == tuple(tuple(e for e in range(16) if e not in pruned[layer]) for layer in (1, 2, 3))
    fewer = methods.plan("c_prune_released", statistics, Budget(experts_per_layer=6), 0, parameters=PARAMETERS)
    assert all(set(kept) <= set(more) for kept, more in zip(fewer.kept, plan.kept, strict=True))


def on_a_line(domain, batches):
    """Return statistics of one layer whose experts' outputs are numbers, per batch those given."""
    outputs = np.array(batches, dtype=float)
    gram = np.einsum("bx,by->xby", outputs, outputs)[None, :, :, None]
    return ExpertStatistics(domain, MoELayout((0,), (4,), 1), {"pooled_gram": gram}, 0)


@pytest.mark.parametrize(("ones", "others"), [(1, 1), (1, 2), (2, 3)])
def test_a_mixture_counts_the_votes_of_every_domains_batches(ones, others):
    one, other = on_a_line("a", [[0, 1, 2, 100]] * ones), on_a_line("b", [[1, 0, 2, 100]] * others)
    parameters = {"clusters": 2, "global_clusters": 1, "layer_rate": 0.25, "global_rate": 0.25}
    plan = methods.plan_mixed(
        "c_prune_released", [other, one], Budget(experts_per_layer=1), 0, None, "balanced", parameters
    )
    # In every batch expert 3 is a cluster by itself and the middle one of the others, 1 or 0, has their one vote:
    # the layer stage prunes 2. Of the three left, one cluster, the nearest to the centre is again 1 or 0.
    lead = ones + others + 1
    assert plan.scores.tolist() == [[lead + others, lead + ones, 0, lead]]


def test_a_mixture_needs_every_domains_batches():
    lacking = ExpertStatistics("b", MoELayout((0,), (4,), 1), {"count": np.zeros((1, 4))}, 0)
    with pytest.raises(StatisticsError, match="'a' and 'b' do not add"):
        methods.plan_mixed(
            "c_prune_released", [on_a_line("a", [[0, 1, 2, 9]]), lacking], Budget(experts_per_layer=1), 0
        )


def test_layers_of_different_size_are_refused():
    layout = MoELayout((0, 1), (4, 3), 2)
    statistics = ExpertStatistics("toy", layout, {"pooled_gram": np.zeros((2, 4, 1, 2, 4))}, 1)
    with pytest.raises(ParameterError, match="between 3 and 4 experts"):
        methods.plan("c_prune_released", statistics, Budget(experts_per_layer=2), 0)
