"""The published C-Prune from experts' outputs: its clusters read literally, and its plans."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.methods._released_clusters import cluster_batch, cluster_samples
from moe_compress.methods._released_votes import prune_each_layer, prune_over_layers
from moe_compress.types import Budget, ExpertStatistics, MoELayout

PARAMETERS = {"batch_size": 4, "clusters": 5, "global_clusters": 6, "layer_rate": 0.2, "global_rate": 0.2}


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_ward_on_rows_of_distances(seed):
    vectors = np.random.default_rng(seed).normal(size=(14, 6))
    distances = np.array([[sqrt(sum((a - b) ** 2)) for b in vectors] for a in vectors])
    labels = _ward_of_rows(distances)
    found = cluster_batch(vectors, 5)
    assert [label for label, _ in found] == labels
    for expert, (label, distance) in enumerate(found):
        members = [other for other in range(14) if labels[other] == label]
        center = sum(vectors[member] for member in members) / len(members)
        assert distance == pytest.approx(sqrt(sum((vectors[expert] - center) ** 2)), abs=1e-9)


def _ward_of_rows(distances):
    between = [sqrt(sum((a - b) ** 2)) for i, a in enumerate(distances) for b in distances[i + 1 :]]
    return fcluster(linkage(between, "ward"), 5, "maxclust").tolist()


def test_batches_are_samples_in_order_and_the_last_may_be_short():
    outputs = np.random.default_rng(0).normal(size=(8, 10, 3))
    batches = cluster_samples(outputs, 4, 3)
    assert len(batches) == 3
    assert batches[2] == cluster_batch(outputs[:, 8:].reshape(8, -1), 3)


def test_one_expert_is_its_own_cluster():
    assert cluster_batch(np.ones((1, 4)), 3) == [(1, 0.0)]


def test_following_the_rates_is_the_published_voting(make_statistics):
    statistics = make_statistics(1, layers=4)
    plan = methods.plan(
        "c_prune_released",
        statistics,
        Budget(fraction_dropped=0.5),
        0,
        parameters={**PARAMETERS, "follow": "rates"},
    )
    outputs = statistics["pooled_outputs"]
    layers = {layer: cluster_samples(outputs[layer - 1], 4, 5) for layer in (1, 2, 3, 4)}
    pruned = prune_each_layer(layers, 0.2)
    left = [outputs[layer - 1, e] for layer in (1, 2, 3, 4) for e in range(16) if e not in pruned[layer]]
    gone = prune_over_layers(cluster_samples(np.array(left), 4, 6), pruned, 16, 0.2, 0.2)
    assert plan.kept == tuple(tuple(e for e in range(16) if e not in gone[layer]) for layer in (1, 2, 3, 4))


def test_following_the_budget_drops_the_layer_stages_first(make_statistics):
    statistics = make_statistics(2)
    pruned = prune_each_layer(
        {layer: cluster_samples(statistics["pooled_outputs"][layer - 1], 4, 5) for layer in (1, 2, 3)}, 0.2
    )
    budget = Budget(experts_per_layer=13)  # int(0.2 * 16) = 3 go: the layer stage's
    plan = methods.plan("c_prune_released", statistics, budget, 0, parameters=PARAMETERS)
    assert plan.kept == tuple(tuple(e for e in range(16) if e not in pruned[layer]) for layer in (1, 2, 3))
    fewer = methods.plan("c_prune_released", statistics, Budget(experts_per_layer=6), 0, parameters=PARAMETERS)
    assert all(set(kept) <= set(more) for kept, more in zip(fewer.kept, plan.kept, strict=True))


def test_layers_of_different_size_are_refused():
    layout = MoELayout((0, 1), (4, 3), 2)
    outputs = np.random.default_rng(0).normal(size=(2, 4, 3, 2))
    statistics = ExpertStatistics("toy", layout, {"pooled_outputs": outputs}, 1)
    with pytest.raises(ParameterError, match="between 3 and 4 experts"):
        methods.plan("c_prune_released", statistics, Budget(experts_per_layer=2), 0)
