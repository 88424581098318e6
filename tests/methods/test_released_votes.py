"""C-Prune's published voting: one of its own runs reproduced, and each rule worked by hand."""

from __future__ import annotations

import json
import os
from math import e
from pathlib import Path

import pytest

from moe_compress.errors import ParameterError, StatisticsError
from moe_compress.methods._released_votes import (
    count_votes,
    fewest_votes,
    prune_each_layer,
    prune_over_layers,
    vote_coefficient,
)

SHARED = Path(os.environ.get("MOE_COMPRESS_SHARED", Path(__file__).parents[2].parent / "shared"))
GOLDEN = SHARED / "golden" / "c_prune_released"
EXPERTS, RATE = 64, 0.1


def read_golden(name):
    if not GOLDEN.is_dir():
        pytest.skip(
            f"the published run is not at {GOLDEN}; set MOE_COMPRESS_SHARED to the folder that holds golden/"
        )
    return json.loads((GOLDEN / name).read_text())


def by_layer(value):
    return {int(layer): tuple(experts) for layer, experts in value.items()}


def test_the_layer_stage_prunes_what_the_authors_run_pruned():
    layers = {int(layer): batches for layer, batches in read_golden("layer_clusters.json").items()}
    expected = by_layer(read_golden("layer_pruned_rate_0.1.json"))
    assert len(expected) == 26
    assert prune_each_layer(layers, RATE) == expected


def test_the_global_stage_prunes_what_the_authors_run_pruned():
    layer_pruned = by_layer(read_golden("layer_pruned_rate_0.1.json"))
    expected = by_layer(read_golden("all_pruned_rate_0.1_0.1.json"))
    assert len(expected) == 26
    batches = read_golden("global_clusters.json")
    assert prune_over_layers(batches, layer_pruned, EXPERTS, RATE, RATE) == expected


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


def test_clusters_of_other_experts_are_refused():
    with pytest.raises(StatisticsError, match="have 4 experts, but the layer stage left 3"):
        prune_over_layers([[(0, 0.0)] * 4], {0: (1,)}, 4, 0.1, 0.1)
