"""The trees that methods show are those their plans were cut from."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from tests.methods.conftest import draw_sums, statistics_from

from moe_compress import methods
from moe_compress.methods._agglomerate import name_joins
from moe_compress.methods._budget import layer_bounds
from moe_compress.types import Budget, MoELayout, pruning_groups

KEEP = Budget(experts_per_layer=6)
OVER_ALL = Budget(experts_per_layer=6, scope="global")


def clusters_of(joins, num_experts):
    """Return what the joins that were done leave."""
    parts = {expert: (expert,) for expert in range(num_experts)}
    for index, (one, other, _, done) in enumerate(joins):
        if done:
            parts[num_experts + index] = tuple(sorted(parts.pop(int(one)) + parts.pop(int(other))))
    return set(parts.values())


@pytest.mark.parametrize("name", ["hc_smoe", "group_and_merge"])
@pytest.mark.parametrize("budget", [KEEP, OVER_ALL], ids=["per_layer", "global"])
@pytest.mark.parametrize("groups", [(1, 1), (2, 1)], ids=["free", "grouped"])
def test_the_joins_done_leave_the_plans_groups(name, budget, groups, make_statistics):
    statistics = make_statistics(1, *groups)
    plan = methods.plan(name, statistics, budget, 3)
    trees = methods.describe_background(name, statistics, budget, 3).trees
    assert trees.is_methods_own
    for joins, of_layer in zip(trees.joins, plan.groups, strict=True):
        assert clusters_of(joins, 16) == {group.members for group in of_layer}


@pytest.mark.parametrize("budget", [Budget(fraction_dropped=0.5), Budget(fraction_dropped=0.5, scope="global")])
@pytest.mark.parametrize("name", ["hc_smoe", "group_and_merge", "m_smoe", "c_prune"])
def test_a_layer_of_one_expert_keeps_it_and_joins_nothing(name, budget):
    statistics = statistics_from(draw_sums(1), top_k=1)
    statistics = replace(statistics, layout=MoELayout((1, 2, 3), (1, 16, 8), top_k=1))
    plan = methods.plan(name, statistics, budget, 3)
    assert plan.groups[0] == pruning_groups([0])
    trees = methods.describe_background(name, statistics, budget, 3).trees
    assert trees.joins[0].shape == (0, 4)


def test_heights_are_mean_distances_of_the_parts_over_the_largest(make_statistics):
    statistics = make_statistics(2)
    joins = methods.describe_background("hc_smoe", statistics, KEEP, 0).trees.joins[0]
    phi = statistics["embedding"][0]
    parts, heights = {expert: [expert] for expert in range(16)}, []
    for index, (one, other) in enumerate(joins[:, :2].astype(int)):
        a, b = parts.pop(one), parts.pop(other)
        heights.append(np.mean([np.linalg.norm(phi[i] - phi[j]) for i in a for j in b]))
        parts[16 + index] = a + b
    assert joins[:, 2] == pytest.approx(np.array(heights) / max(heights))


@pytest.mark.parametrize("groups", [(1, 1), (2, 1)], ids=["free", "grouped"])
def test_c_prune_shows_the_merges_of_its_first_stage(groups, make_statistics):
    statistics = make_statistics(1, *groups)
    given = {"global_rate": 0.0, "grouping": "rate"}  # so that all of the budget is the first stage's
    plan = methods.plan("c_prune", statistics, KEEP, 3, parameters=given)
    trees = methods.describe_background("c_prune", statistics, KEEP, 3, parameters=given).trees
    for joins, of_layer in zip(trees.joins, plan.groups, strict=True):
        assert joins[:, 3].all()
        assert clusters_of(joins, 16) == {group.members for group in of_layer}


def test_merges_are_named_by_what_earlier_ones_made():
    # 3 and 1 make part 4; 1, now in it, and 0 make part 5.
    joins = name_joins([(3, 1, 0.75), (1, 0, 0.5)], 4)
    assert joins.tolist() == [[3, 1, 0.25, 1], [4, 0, 0.5, 1]]
    assert name_joins([], 4).shape == (0, 4)


def test_a_method_without_trees_shows_a_linkage_it_did_not_use(make_statistics):
    statistics = make_statistics(0)
    trees = methods.describe_background("easy_ep", statistics, KEEP, 0).trees
    assert not trees.is_methods_own and not any(joins[:, 3].any() for joins in trees.joins)
    phi = statistics["embedding"][0] / np.linalg.norm(statistics["embedding"][0], axis=1, keepdims=True)
    closest = min(1 - phi[i] @ phi[j] for i, j in combinations(range(16), 2))
    assert trees.joins[0][0, 2] == pytest.approx(closest)


def test_bounds_are_told_where_layers_may_differ(make_statistics):
    statistics = make_statistics(0)
    assert methods.describe_background("easy_ep", statistics, KEEP, 0).bounds is None
    floors, ceilings = layer_bounds(OVER_ALL, statistics.layout)
    bounds = methods.describe_background("easy_ep", statistics, OVER_ALL, 0).bounds
    assert bounds == tuple(zip(floors, ceilings, strict=True))
