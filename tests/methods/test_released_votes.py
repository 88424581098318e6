"""C-Prune's published voting: one of its own runs reproduced, and each rule worked by hand."""

from __future__ import annotations

import json
import os
from math import e, exp
from pathlib import Path

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError, StatisticsError
from moe_compress.methods._released_votes import (
    count_votes,
    fewest_votes,
    prune_each_layer,
    prune_over_layers,
    vote_coefficient,
)

SHARED = Path(os.environ.get("MOE_COMPRESS_SHARED", Path(__file__).parents[2].parent / "shared"))
GOLDEN = SHARED / "golden"


def published_runs():
    """Return (folder, layer rate, global rate) of each run in `golden/c_prune_released*`, told from its files."""
    lists = sorted(GOLDEN.glob("c_prune_released*/all_pruned_rate_*_*.json"))
    return [(path.parent, *map(float, path.stem.split("_")[-2:])) for path in lists]


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def by_layer(value):
    return {int(layer): tuple(experts) for layer, experts in value.items()}


@pytest.mark.parametrize(("folder", "layer_rate", "global_rate"), published_runs())
def test_published_runs_give_the_published_lists(folder, layer_rate, global_rate):
    clusters, over = read(folder, "layer_clusters"), read(folder, "global_clusters")
    layer_stage, both = methods.prune_published(clusters, over, layer_rate, global_rate)
    assert layer_stage == by_layer(read(folder, f"layer_pruned_rate_{layer_rate}"))
    assert both == by_layer(read(folder, f"all_pruned_rate_{layer_rate}_{global_rate}"))


@pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no published run at {GOLDEN}; set MOE_COMPRESS_SHARED to what holds golden/"
)
def test_the_authors_run_of_26_layers_is_among_them():
    runs = {folder.name: len(read(folder, "layer_clusters")) for folder, _, _ in published_runs()}
    assert runs["c_prune_released"] == 26


def vote_slowly(batches, num_experts, per_layer, rate):
    """The rules one by one, over every label there is."""
    votes = dict.fromkeys(range(num_experts), 0)
    for batch in batches:
        for label in {label for label, _ in batch}:
            members = [index for index, (own, _) in enumerate(batch) if own == label]
            n = len(members)
            if n < 3:
                chosen = members
            else:
                p = n / per_layer
                share = exp(p - 0.5) / (exp(p - 0.5) + exp(0.5 - p))
                coefficient = 0.5 + 0.6 * (exp(0.5 - p) - share)
                count = int(coefficient * (1 - rate) * n)
                members.sort(key=lambda index: (batch[index][1], index))
                chosen = members[:count] if count >= 0 else members[: max(0, n + count)]
            for index in chosen:
                votes[index] += 1
    return votes


def prune_slowly(layer_clusters, global_clusters, layer_rate, global_rate):
    layer_stage = {}
    for layer, batches in layer_clusters.items():
        votes = vote_slowly(batches, len(batches[0]), len(batches[0]), layer_rate)
        order = sorted(votes, key=lambda expert: (votes[expert], expert))
        layer_stage[int(layer)] = sorted(order[: int(layer_rate * len(votes))])
        per_layer = len(votes)
    left = [(layer, e) for layer in sorted(layer_stage) for e in range(per_layer) if e not in layer_stage[layer]]
    votes = vote_slowly(global_clusters, len(left), per_layer, global_rate)
    order = sorted(votes, key=lambda index: (votes[index], index))[: int(global_rate * len(left))]
    both = {}
    for layer, pruned in layer_stage.items():
        most = int(len(pruned) // layer_rate * 0.9)
        more = [left[index][1] for index in order if left[index][0] == layer][:most]
        both[layer] = tuple(sorted([*pruned, *more]))
    return {layer: tuple(pruned) for layer, pruned in layer_stage.items()}, both


def draw_clusters(rng, num_experts, num_clusters, batches):
    """Clusters of any size, labels with gaps, distances of which many are equal, as float16 ones are."""
    labels = rng.choice(100, num_clusters, replace=False)
    sizes = rng.dirichlet(np.full(num_clusters, 0.7))
    return [
        [
            [int(label), float(np.float16(distance))]
            for label, distance in zip(
                rng.choice(labels, num_experts, p=sizes), rng.integers(0, 40, num_experts) / 8, strict=True
            )
        ]
        for _ in range(batches)
    ]


@pytest.mark.parametrize(
    ("layers", "experts", "clusters", "batches", "rates"),
    [
        (range(24), 60, (12, 8), 32, (0.1, 0.1)),  # Qwen1.5-MoE
        (range(1, 27), 64, (12, 6), 8, (0.2, 0.1)),  # DeepSeek-V2-Lite
        (range(1, 27), 64, (18, 12), 1, (0.3, 0.3)),
        ([2, 3, 5, 8, 13], 16, (5, 2), 3, (0.5, 0.7)),  # layers without experts between; the cap holds
        (range(9, 12), 8, (1, 1), 5, (0.1, 0.4)),  # the first stage takes none, and so may the second
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_other_runs_are_the_rules_read_one_by_one(seed, layers, experts, clusters, batches, rates):
    rng = np.random.default_rng(seed)
    published = {str(layer): draw_clusters(rng, experts, clusters[0], batches) for layer in layers}
    left = len(published) * (experts - int(rates[0] * experts))
    over = draw_clusters(rng, left, clusters[1], batches)
    shuffled = {layer: published[layer] for layer in rng.permutation(list(published)).tolist()}
    found = methods.prune_published(json.loads(json.dumps(shuffled)), over, *rates)
    assert found == prune_slowly(published, over, *rates)
    counted = {int(layer): batches for layer, batches in published.items()}
    assert prune_each_layer(counted, rates[0]) == found[0]
    assert (
        prune_over_layers(over, {str(layer): gone for layer, gone in found[0].items()}, experts, *rates) == found[1]
    )


def test_the_coefficient_by_hand():
    # p = 0.5: both exponents are 0, so 0.5 + 0.6 * (1 - 1/2) = 0.8.
    assert vote_coefficient(4, 8) == pytest.approx(0.8)
    # p = 1.5: 0.5 + 0.6 * (1/e - e / (e + 1/e)).
    assert vote_coefficient(12, 8) == pytest.approx(0.5 + 0.6 * (1 / e - e / (e + 1 / e)))


def test_small_clusters_vote_for_all_and_large_ones_for_their_closest():
    # Cluster 7 has 2 members: both. Cluster 3 has 4 of 8: int(0.8 * (1 - 0.1) * 4) = 2, the closest two.
    batch = [(7, 9.0), (3, 4.0), (3, 1.0), (7, 0.0), (3, 3.0), (3, 2.0)]
    assert count_votes([batch], 8, 0.1) == [1, 0, 1, 1, 0, 1]
    assert count_votes([batch, batch], 8, 0.1) == [2, 0, 2, 2, 0, 2]


def test_a_negative_number_of_votes_leaves_out_the_farthest():
    # p = 10: 0.5 + 0.6 * (exp(-9.5) - 1) = -0.1; int(-0.1 * 0.9 * 40) = -3, so all but the 3 farthest vote.
    votes = count_votes([[(0, float(distance)) for distance in range(40)]], 4, 0.1)
    assert votes == [1] * 37 + [0] * 3


def test_equal_distances_vote_in_order_of_expert():
    assert count_votes([[(0, 1.0)] * 4], 8, 0.1) == [1, 1, 0, 0]


def test_fewest_votes_come_first_and_equal_ones_by_expert():
    assert fewest_votes([3, 1, 2, 1, 0, 9], 0.5) == [4, 1, 3]
    assert fewest_votes([1, 2], 0.4) == []


def test_the_cap_follows_the_published_floor_division():
    # Layers 0 and 1 of 10 experts, expert 9 of each pruned before: 1 // 0.1 = 9, 9 * 0.9 = 8.1, so the cap is 8.
    # All 9 of layer 0 have no vote and the 9 of layer 1 have one each; half of 18 is layer 0's nine.
    # The global stage takes the first 8 of the nine, and the last in order of votes stays.
    alone = [(label, 0.0) for label in range(9, 18)]
    # One cluster of 9 with p = 9 / 10 at rate 0.5: 0.5 + 0.6 * (exp(-0.4) - exp(0.4) / (exp(0.4) + exp(-0.4)))
    # = 0.488, times 0.5 times 9 = 2.2: two votes each batch; ties by distance give layer 0's experts 0 and 1.
    together = [(0, float(expert)) for expert in range(9)]
    batches = [together + alone] * 3
    pruned = prune_over_layers(batches, {0: (9,), 1: (9,)}, 10, 0.1, 0.5)
    # Experts 0 and 1 have 3 votes like all of layer 1; the fewest nine are layer 0's other seven, then 0 and 1.
    assert pruned == {0: (0, 2, 3, 4, 5, 6, 7, 8, 9), 1: (9,)}


def test_layers_without_more_keep_what_the_layer_stage_pruned():
    batches = [[(label, 0.0) for label in range(4)]]
    assert prune_over_layers(batches, {2: (1,), 5: (0,)}, 3, 0.4, 0.1) == {2: (1,), 5: (0,)}


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ParameterError, match="layer_rate is"):
        prune_each_layer({0: [[(0, 0.0)] * 4]}, rate)
    with pytest.raises(ParameterError, match="global_rate is"):
        prune_over_layers([[(0, 0.0)] * 4], {0: ()}, 4, 0.1, rate)


def test_batches_of_different_experts_are_refused():
    with pytest.raises(StatisticsError, match=r"batches have \[1, 2\] experts"):
        count_votes([[(0, 0.0)], [(0, 0.0)] * 2], 8, 0.1)
    with pytest.raises(StatisticsError, match=r"batches have \[\] experts"):
        count_votes([], 8, 0.1)


def test_layers_without_batches_or_of_different_sizes_are_refused():
    one = [[(0, 0.0)] * 4]
    with pytest.raises(StatisticsError, match=r"batches have \[\] experts"):
        prune_each_layer({0: one, 1: []}, 0.1)
    with pytest.raises(StatisticsError, match=r"layers' clusters have \[4, 5\] experts"):
        methods.prune_published({"0": one, "1": [[(0, 0.0)] * 5]}, one, 0.1, 0.1)
    with pytest.raises(StatisticsError, match=r"layers' clusters have \[\] experts"):
        methods.prune_published({}, one, 0.1, 0.1)


def test_clusters_of_other_experts_are_refused():
    with pytest.raises(StatisticsError, match="have 4 experts, but the layer stage left 3"):
        prune_over_layers([[(0, 0.0)] * 4], {0: (1,)}, 4, 0.1, 0.1)
