"""Plans from eliminations: which experts stay, and budgets from error curves against trying every share."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import StatisticsError
from moe_compress.methods._curves import share_by_error
from moe_compress.types import Budget


def test_the_last_removed_stay(make_statistics):
    statistics = make_statistics(1)
    plan = methods.plan("reconstruct", statistics, Budget(experts_per_layer=5), 0)
    for ranks, kept in zip(statistics["elimination_rank"], plan.kept, strict=True):
        assert set(kept) == set(np.argsort(-ranks)[:5].tolist())


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_shares_have_the_smallest_summed_error(seed, step):
    rng = np.random.default_rng(seed)
    curves = [rng.random(7), rng.random(9), rng.random(7)]  # not even rising: any curve will do
    floors, ceilings, total = (2, 2, 4), (6, 8, 6), 14
    counts = share_by_error(curves, total, floors, ceilings, step)

    def error(shares):
        return sum(curve[len(curve) - count] for curve, count in zip(curves, shares, strict=True))

    ranges = [range(floor, ceiling + 1, step) for floor, ceiling in zip(floors, ceilings, strict=True)]
    every = [shares for shares in product(*ranges) if sum(shares) == total]
    assert counts in every
    assert error(counts) == pytest.approx(min(map(error, every)))


def test_a_global_budget_follows_the_curves(make_statistics):
    statistics = make_statistics(2)
    sums = dict(statistics.sums)
    # Layer 0 loses nothing whatever goes, the others lose with every expert: it falls to its floor.
    sums["elimination_error"] = np.arange(16.0) * np.array([[0.0], [1.0], [1.0]])
    flat = type(statistics)("toy", statistics.layout, sums, statistics.num_tokens)
    plan = methods.plan("reconstruct", flat, Budget(experts_per_layer=10, scope="global"), 0)
    assert plan.new_layout.num_experts[0] == 2
    assert sum(plan.new_layout.num_experts) == 30


def test_ranks_of_several_eliminations_are_refused(make_statistics):
    statistics = make_statistics()
    with pytest.raises(StatisticsError, match=r"layer 1's elimination ranks .* are not one elimination's"):
        methods.plan("reconstruct", statistics + statistics, Budget(experts_per_layer=5), 0)
