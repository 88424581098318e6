"""Clusters from best to worst when a router has groups, by hand."""

from __future__ import annotations

import numpy as np

from moe_compress.methods._stages import rank_in_turn


def test_groups_take_turns_and_the_largest_loses_its_worst():
    worth = np.array([5.0, 9.0, 1.0, 4.0, 7.0, 8.0])
    home = np.array([0, 0, 0, 1, 1, 0])
    # Group 0 has 1, 5, 0, 2 from best to worst, group 1 has 4, 3: two turns, and 0 and 2 are left out.
    assert rank_in_turn(worth, home, 2, (0,)).tolist() == [1, 4, 5, 3]
    assert rank_in_turn(worth, np.zeros(6, dtype=int), 1, (0,)).tolist() == [1, 5, 4, 0, 3, 2]


def test_equal_clusters_are_drawn():
    first = {int(rank_in_turn(np.ones(6), np.zeros(6, dtype=int), 1, (seed,))[0]) for seed in range(30)}
    assert len(first) > 3
