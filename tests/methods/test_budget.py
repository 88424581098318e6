"""Budgets: met exactly, shared out as a slow greedy ranking would, within floors and caps."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.types import Budget, ExpertStatistics, MoELayout


def layout_of(*num_experts, top_k=2):
    return MoELayout(tuple(range(1, len(num_experts) + 1)), num_experts, top_k)


def gates(layout, rng, spread=1.0):
    """Statistics of one sum, `gate`; layers differ in scale, and the experts of some matter far more evenly."""
    values = np.zeros((len(layout.layers), max(layout.num_experts)))
    for row, experts in enumerate(layout.num_experts):
        values[row, :experts] = np.exp(rng.normal(0, spread * (row + 1), experts)) * 10.0**row
    return ExpertStatistics("toy", layout, {"gate": values}, 0)


def plan_global(statistics, seed=0, name="gating_score", **budget):
    return methods.plan(name, statistics, Budget(scope="global", **budget), seed)


def share_slowly(statistics, total):
    """Give every layer its floor, then one expert at a time the highest share that is left."""
    layout = statistics.layout
    order, shares, kept = [], [], []
    for row, experts in enumerate(layout.num_experts):
        scores = statistics["gate"][row, :experts]
        shares.append([score / sum(scores) for score in scores])
        order.append(sorted(range(experts), key=lambda expert: -scores[expert]))
        may_go = int(0.9 * experts)
        kept.append(max(layout.top_k, experts - may_go))
    while sum(kept) < total:
        heads = [
            (shares[row][order[row][kept[row]]], row)
            for row, experts in enumerate(layout.num_experts)
            if kept[row] < experts
        ]
        kept[max(heads)[1]] += 1
    return tuple(tuple(sorted(order[row][: kept[row]])) for row in range(len(kept)))


@pytest.mark.parametrize("total_kept", [0.25, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_a_global_budget_is_the_slow_ranking(seed, total_kept):
    layout = layout_of(24, 24, 16, 32)
    statistics = gates(layout, np.random.default_rng(seed))
    plan = plan_global(statistics, fraction_dropped=1 - total_kept)
    total = 96 - int(96 * (1 - total_kept) + 1e-9)
    assert sum(plan.new_layout.num_experts) == total
    assert plan.kept == share_slowly(statistics, total)
    assert not plan.new_layout.is_uniform


def test_floor_and_cap_hold():
    # Layer 1 has all its score on one expert, layer 2 the same on each: shares alone would leave layer 1 one.
    layout = layout_of(40, 40, top_k=2)
    values = np.ones((2, 40))
    values[0, 1:] = 1e-9
    statistics = ExpertStatistics("toy", layout, {"gate": values}, 0)
    # The cap of 90 % leaves 4 of 40, more than top_k=2.
    assert plan_global(statistics, fraction_dropped=0.5).new_layout.num_experts == (4, 36)
    wide = ExpertStatistics("toy", layout_of(40, 40, top_k=6), {"gate": values}, 0)
    assert plan_global(wide, fraction_dropped=0.5).new_layout.num_experts == (6, 34)


def test_a_count_is_an_average_when_layers_compete():
    statistics = gates(layout_of(16, 16, 16), np.random.default_rng(1))
    assert sum(plan_global(statistics, experts_per_layer=5).new_layout.num_experts) == 15


def test_the_scale_of_a_layer_does_not_matter():
    statistics = gates(layout_of(16, 16), np.random.default_rng(2))
    scaled = {"gate": statistics["gate"] * np.array([[4.0], [0.25]])}
    other = ExpertStatistics("toy", statistics.layout, scaled, 0)
    assert plan_global(statistics, fraction_dropped=0.4).kept == plan_global(other, fraction_dropped=0.4).kept


def test_a_layer_without_any_score_counts_as_even():
    values = np.zeros((2, 10))
    values[1] = 1.0
    statistics = ExpertStatistics("toy", layout_of(10, 10), {"gate": values}, 0)
    assert sum(plan_global(statistics, fraction_dropped=0.5).new_layout.num_experts) == 10


def test_ties_over_layers_are_drawn():
    layout = layout_of(16, 16)
    statistics = ExpertStatistics("toy", layout, {"gate": np.ones((2, 16))}, 0)
    counts = {plan_global(statistics, seed, fraction_dropped=0.5).new_layout.num_experts for seed in range(20)}
    assert len(counts) > 3  # neither layer is always the one that loses
    assert {sum(count) for count in counts} == {16}
    repeated = [plan_global(statistics, 5, fraction_dropped=0.5).kept for _ in range(2)]
    assert repeated[0] == repeated[1]


def test_counts_snap_up_to_a_multiple():
    layout = layout_of(60, 48)
    # Of 60, 18 go and 42 stay, which snaps to 48; of 48, 14 go and 34 stay, which snaps to 40.
    assert methods.experts_to_keep(Budget(fraction_dropped=0.3, multiple_of=8), layout) == (48, 40)
    assert methods.experts_to_keep(Budget(experts_per_layer=32, multiple_of=8), layout) == (32, 32)


@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_global_budget_in_multiples(step):
    statistics = gates(layout_of(32, 30, 24), np.random.default_rng(3))
    plan = plan_global(statistics, fraction_dropped=0.45, multiple_of=step)
    counts = plan.new_layout.num_experts
    assert all(count % step == 0 for count in counts)
    # Of 86, 38 go and 48 stay, a multiple of every step.
    assert sum(counts) == 48
    for row, kept in enumerate(plan.kept):
        scores = statistics["gate"][row, : statistics.layout.num_experts[row]]
        assert set(kept) == set(np.argsort(-scores)[: len(kept)].tolist())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget(experts_per_layer=29, multiple_of=8),
            "would keep 32 experts to reach a multiple of 8, but it has 30",
        ),
        (Budget(fraction_dropped=0.0, multiple_of=8), "keep at most 24"),
        (
            Budget(experts_per_layer=2, scope="global"),
            "together would keep 4 experts, .* in all 7; keep at least 7",
        ),
        (Budget(experts_per_layer=31, scope="global"), "together would keep 62 experts, .* they hold 60"),
        (Budget(fraction_dropped=0.0, scope="global", multiple_of=8), "keep 64 experts, .* of 8 they hold 48"),
        (Budget(fraction_dropped=0.5, scope="global", multiple_of=32), "to reach a multiple of 32, but it has 30"),
    ],
)
def test_budgets_a_model_cannot_meet(budget, message):
    layout = layout_of(30, 30, top_k=2) if "in all 7" not in message else layout_of(30, 40, top_k=2)
    with pytest.raises(ParameterError, match=message):
        methods.check_budget(budget, layout)
    statistics = gates(layout, np.random.default_rng(0))
    with pytest.raises(ParameterError, match=message):
        methods.plan("gating_score", statistics, budget, 0)


def test_unknown_scopes_and_multiples_are_refused():
    with pytest.raises(ParameterError, match="scope is 'all'; give per_layer, global or importance"):
        Budget(experts_per_layer=4, scope="all")
    with pytest.raises(ParameterError, match="multiple_of is 0"):
        Budget(experts_per_layer=4, multiple_of=0)


def test_layers_stay_within_bounds_of_their_own():
    # All score is on layer 2, which would keep 36 of 40 and layer 1 only 4.
    values = np.ones((2, 40))
    values[0, 1:] = 1e-9
    statistics = ExpertStatistics("toy", layout_of(40, 40), {"gate": values}, 0)

    def counts(**bounds):
        return plan_global(statistics, fraction_dropped=0.5, **bounds).new_layout.num_experts

    assert counts(at_least=10) == (10, 30)
    assert counts(at_most=25) == (15, 25)
    assert counts(layer_fraction_dropped=0.6) == (16, 24)
    assert counts(layer_fraction_dropped=1.0) == (2, 38)
    assert counts(at_least=9, multiple_of=4) == (12, 28)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"at_least": 12}, "may lose 90% of its own and keeps at least 12, in all 24; keep at least 24"),
        ({"at_most": 5}, "they hold 10, 5 in each at most; keep at most 10"),
        ({"at_least": 9, "at_most": 8}, "layer 1 has to keep at least 9 experts and may keep 8"),
    ],
)
def test_bounds_that_a_total_cannot_meet(bounds, message):
    statistics = gates(layout_of(16, 16), np.random.default_rng(0))
    with pytest.raises(ParameterError, match=message):
        plan_global(statistics, experts_per_layer=10, **bounds)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"layer_fraction_dropped": 1.5}, "layer_fraction_dropped is 1.5; give a share in 0..1"),
        ({"at_least": 3}, "at_least and at_most are 3 and None, but in scope per_layer"),
    ],
)
def test_bounds_that_are_none(bounds, message):
    with pytest.raises(ParameterError, match=message):
        Budget(experts_per_layer=8, **bounds)
