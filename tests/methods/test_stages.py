"""Clusters from best to worst when a router has groups, and within a layer's bounds, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress.errors import ParameterError
from moe_compress.methods._stages import Rates, keep_clusters, rank_in_turn
from moe_compress.types import Budget, MoELayout


def test_groups_take_turns_and_the_largest_loses_its_worst():
    worth = np.array([5.0, 9.0, 1.0, 4.0, 7.0, 8.0])
    home = np.array([0, 0, 0, 1, 1, 0])
    # Group 0 has 1, 5, 0, 2 from best to worst, group 1 has 4, 3: two turns, and 0 and 2 are left out.
    assert rank_in_turn(worth, home, 2, (0,)).tolist() == [1, 4, 5, 3]
    assert rank_in_turn(worth, np.zeros(6, dtype=int), 1, (0,)).tolist() == [1, 5, 4, 0, 3, 2]


def test_equal_clusters_are_drawn():
    first = {int(rank_in_turn(np.ones(6), np.zeros(6, dtype=int), 1, (seed,))[0]) for seed in range(30)}
    assert len(first) > 3


@pytest.mark.parametrize(
    ("rates", "kept"),
    [
        (Rates(), ((0, 1, 2, 3), (0, 1))),
        (Rates(follow="rates", global_rate=0.5), ((0, 1, 2, 3), (0, 1))),
        (Rates(follow="rates", global_rate=0.25), ((0, 1, 2, 3), (0, 1, 2, 3))),  # 9 of 12, but 4 in each at most
    ],
)
def test_no_layer_keeps_more_than_it_may(rates, kept):
    # All six clusters of layer 0 are worth more than any of layer 1, and half of the twelve stay.
    worth, homes = [np.arange(12.0, 6, -1), np.arange(6.0, 0, -1)], [np.zeros(6, dtype=int)] * 2
    budget = Budget(fraction_dropped=0.5, scope="global", at_most=4)
    assert keep_clusters(worth, homes, rates, budget, MoELayout((0, 1), (6, 6), 1), 0) == kept


def test_too_few_clusters_within_the_bounds_are_told():
    worth, homes = [np.arange(6.0), np.arange(1.0)], [np.zeros(6, dtype=int), np.zeros(1, dtype=int)]
    budget = Budget(fraction_dropped=0.5, scope="global", at_most=4)
    with pytest.raises(
        ParameterError, match="keeps 6 experts of all layers, but the first stage leaves 5 clusters"
    ):
        keep_clusters(worth, homes, Rates(), budget, MoELayout((0, 1), (6, 6), 1), 0)
