"""Totals shared in proportion to layers' importance, against giving out one step at a time."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.methods._importance import share_by_importance
from moe_compress.types import Budget, ExpertStatistics, MoELayout

LAYOUT = MoELayout((0, 1, 2, 3), (20,) * 4, 2)


def share_slowly(importance, total, floor, ceiling, step):
    keep = [floor] * len(importance)
    while sum(keep) < total:
        quotients = [
            value / ((count - floor) // step + 1) if count + step <= ceiling else -1.0
            for value, count in zip(importance, keep, strict=True)
        ]
        keep[int(np.argmax(quotients))] += step
    return tuple(keep)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_steps_go_to_the_layer_farthest_behind(seed, step):
    importance = np.random.default_rng(seed).gamma(0.5, size=4)
    budget = Budget(experts_per_layer=12, scope="importance", multiple_of=step)
    counts = share_by_importance(importance, budget, LAYOUT, 0)
    # A layer of 20 keeps at least 2, and at least 4 in steps of 4.
    assert counts == share_slowly(importance, 48, max(2, step), 20, step)
    assert sum(counts) == 48


def test_equal_layers_share_equally_and_the_rest_is_drawn():
    budget = Budget(fraction_dropped=0.475, scope="importance")  # 42 of 80 stay: 10 each, and 2 more
    counts = [share_by_importance(np.ones(4), budget, LAYOUT, seed) for seed in range(20)]
    assert all(sorted(each) == [10, 10, 11, 11] for each in counts)
    assert len(set(counts)) > 2


def test_negative_importance_is_refused():
    budget = Budget(fraction_dropped=0.5, scope="importance")
    with pytest.raises(ParameterError, match=r"layer 2's scores add up to -1, and shares cannot be negative"):
        share_by_importance(np.array([1.0, 2.0, -1.0, 0.0]), budget, LAYOUT, 0)


def test_a_layers_importance_is_its_summed_scores():
    scores = np.random.default_rng(0).gamma(1.0, size=(4, 20)) * np.array([[1.0], [2.0], [4.0], [8.0]])
    statistics = ExpertStatistics("toy", LAYOUT, {"gate": scores}, 1)
    budget = Budget(experts_per_layer=8, scope="importance")
    plan = methods.plan("gating_score", statistics, budget, 0)
    assert plan.new_layout.num_experts == share_by_importance(scores.sum(axis=1), budget, LAYOUT, 0)
    for row, kept in zip(scores, plan.kept, strict=True):
        assert set(kept) == set(np.argsort(-row)[: len(kept)].tolist())
    methods.check_budget(budget, LAYOUT)
    with pytest.raises(ParameterError, match="all layers together would keep 4"):
        methods.check_budget(Budget(experts_per_layer=1, scope="importance"), LAYOUT)
