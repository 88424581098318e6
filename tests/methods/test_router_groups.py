"""Routers that pick among groups of experts: the groups stay equal, or are given up."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.types import Budget, ExpertStatistics, MoELayout


def layout_of(*num_experts, top_k=4, groups=4, chosen=2):
    return MoELayout(tuple(range(len(num_experts))), num_experts, top_k, groups, chosen)


def statistics_of(layout, seed, domain="toy"):
    """Random gate weights; layers differ in how evenly they spread, and one group is far ahead of the others."""
    rng = np.random.default_rng(seed)
    values = np.zeros((len(layout.layers), max(layout.num_experts)))
    for row, experts in enumerate(layout.num_experts):
        values[row, :experts] = np.exp(rng.normal(0, 0.5 + row, experts))
        values[row, : experts // layout.num_groups] *= 50
    return ExpertStatistics(domain, layout, {"gate": values}, 0)


def group_sizes(plan):
    """Return per layer how many experts of each old group stay."""
    groups = plan.layout.num_groups
    return [
        np.bincount(np.array(kept) // (experts // groups), minlength=groups).tolist()
        for kept, experts in zip(plan.kept, plan.layout.num_experts, strict=True)
    ]


BUDGETS = [
    Budget(fraction_dropped=0.5),
    Budget(experts_per_layer=12),
    Budget(fraction_dropped=0.3, multiple_of=8),
    Budget(fraction_dropped=0.5, multiple_of=6),
    Budget(fraction_dropped=0.5, scope="global"),
    Budget(fraction_dropped=0.4, scope="global", multiple_of=8),
    Budget(experts_per_layer=16, scope="global"),
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_balanced_plans_meet_the_budget_with_the_best_of_each_group(budget, seed):
    layout = layout_of(32, 32, 48, 24)
    statistics = statistics_of(layout, seed)
    plan = methods.plan("gating_score", statistics, budget, seed)
    for row, (sizes, kept) in enumerate(zip(group_sizes(plan), plan.kept, strict=True)):
        assert len(set(sizes)) == 1 and sizes[0] >= 2
        assert sizes[0] * layout.topk_groups >= layout.top_k
        assert len(kept) % budget.multiple_of == 0
        size = layout.num_experts[row] // layout.num_groups
        for group in range(layout.num_groups):
            members = np.arange(group * size, (group + 1) * size)
            best = members[np.argsort(-statistics["gate"][row, members])[: sizes[0]]]
            assert set(best.tolist()) <= set(kept)
    if budget.scope == "per_layer":
        assert plan.new_layout.num_experts == methods.experts_to_keep(budget, layout)
    else:
        step = np.lcm(budget.multiple_of, layout.num_groups)
        wanted = 64 if budget.experts_per_layer else 136 - int(136 * budget.fraction_dropped)
        assert sum(plan.new_layout.num_experts) == -(-wanted // step) * step


def share_slowly(statistics, total):
    """Give every layer its floor, then one step at a time to the layer whose next experts are worth most."""
    layout = statistics.layout
    groups = layout.num_groups
    ranked, kept = [], []
    for row, experts in enumerate(layout.num_experts):
        values = statistics["gate"][row, :experts] / statistics["gate"][row, :experts].sum()
        ranked.append([sorted(values[g * experts // groups :][: experts // groups])[::-1] for g in range(groups)])
        fewest = max(2 * groups, groups * -(-layout.top_k // layout.topk_groups), experts - int(0.9 * experts))
        kept.append(-(-fewest // groups))
    while groups * sum(kept) < total:
        worth = {
            row: sum(group[kept[row]] for group in ranked[row])
            for row in range(len(kept))
            if kept[row] < len(ranked[row][0])
        }
        kept[max(worth, key=worth.get)] += 1
    return tuple(groups * count for count in kept)


@pytest.mark.parametrize("seed", range(4))
def test_a_global_budget_is_the_slow_ranking_of_steps(seed):
    statistics = statistics_of(layout_of(32, 32, 48, 24), seed)
    plan = methods.plan("gating_score", statistics, Budget(fraction_dropped=0.5, scope="global"), 0)
    assert plan.new_layout.num_experts == share_slowly(statistics, 68)
    assert not plan.new_layout.is_uniform


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("seed", range(4))
def test_permuting_experts_inside_groups_permutes_the_plan(seed, scope):
    layout = layout_of(24, 24)
    statistics = statistics_of(layout, seed)
    rng = np.random.default_rng(seed)
    order = np.concatenate([group * 6 + rng.permutation(6) for group in range(4)])
    permuted = ExpertStatistics("toy", layout, {"gate": statistics["gate"][:, order]}, 0)
    budget = Budget(fraction_dropped=0.4, scope=scope)
    kept, moved = (methods.plan("gating_score", each, budget, 0).kept for each in (statistics, permuted))
    assert [set(order[list(row)]) for row in moved] == [set(row) for row in kept]


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("groups", ["balanced", "flatten"])
def test_keeping_all_is_the_identity(scope, groups):
    statistics = statistics_of(layout_of(24, 24), 0)
    plan = methods.plan("gating_score", statistics, Budget(fraction_dropped=0.0, scope=scope), 0, groups)
    assert plan.kept == (tuple(range(24)),) * 2


def test_ties_inside_a_group_are_drawn():
    layout = layout_of(32)
    ones = ExpertStatistics("toy", layout, {"gate": np.ones((1, 32))}, 0)
    plans = [methods.plan("gating_score", ones, Budget(experts_per_layer=16), seed).kept[0] for seed in range(20)]
    assert len(set(plans)) == 20
    # Of 20 fair draws of 4 of 8, the first and the last expert of a group stay in about 10 each.
    assert all(2 <= sum(expert in kept for kept in plans) <= 18 for expert in (0, 7, 24, 31))


def test_giving_the_groups_up_chooses_as_if_there_were_none():
    layout = layout_of(32, 32)
    statistics = statistics_of(layout, 1)
    free = ExpertStatistics("toy", layout.flattened, dict(statistics.sums), 0)
    for budget in (Budget(experts_per_layer=9), Budget(fraction_dropped=0.55, scope="global")):
        flat = methods.plan("gating_score", statistics, budget, 0, "flatten")
        assert flat.kept == methods.plan("gating_score", free, budget, 0).kept
        assert flat.layout == layout
        assert (flat.new_layout.num_groups, flat.new_layout.topk_groups) == (1, 1)
        assert any(len(set(sizes)) > 1 for sizes in group_sizes(flat))


@pytest.mark.parametrize("weights", [None, "max_min"])
def test_mixed_domains_keep_the_groups_equal_too(weights):
    layout = layout_of(32, 32)
    domains = [statistics_of(layout, seed, name) for seed, name in enumerate(["a", "b"])]
    budget = Budget(fraction_dropped=0.5)
    balanced = methods.plan_mixed("gating_score", domains, budget, 0, weights)
    assert group_sizes(balanced) == [[4, 4, 4, 4]] * 2
    flat = methods.plan_mixed("gating_score", domains, budget, 0, weights, "flatten")
    assert flat.router_groups == "flatten" and len(set(group_sizes(flat)[0])) > 1


@pytest.mark.parametrize(
    ("budget", "layout", "message"),
    [
        (
            Budget(experts_per_layer=4),
            layout_of(32),
            "layer 0 would keep 4 experts, .* top_k=4 per token from 2 of 4 groups of at least 2; keep at least 8",
        ),
        (Budget(experts_per_layer=8), layout_of(32, top_k=6), "keep at least 12"),
        (Budget(experts_per_layer=31, multiple_of=3), layout_of(32), "to reach a multiple of 12, but it has 32"),
        (Budget(experts_per_layer=4, scope="global"), layout_of(32, 32), "needs 8 to route .* in all 16"),
    ],
)
def test_budgets_the_groups_have_no_room_for(budget, layout, message):
    with pytest.raises(ParameterError, match=message):
        methods.check_budget(budget, layout)
    with pytest.raises(ParameterError, match=message):
        methods.plan("gating_score", statistics_of(layout, 0), budget, 0)
