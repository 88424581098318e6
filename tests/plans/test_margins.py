"""Margins and overlaps by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress.errors import PlanError
from moe_compress.plans.margins import Margin, compare_layers, describe_layers, margins, overlap
from moe_compress.types import CompressionPlan, ExpertGroup, MoELayout, pruning_groups

LAYOUT = MoELayout((3, 4), (4, 3), 2)


def plan_of(*kept, scores=None, layout=LAYOUT):
    return CompressionPlan(layout, tuple(map(pruning_groups, kept)), "toy", scores)


def test_margins_by_hand():
    scores = np.array([[5.0, 1.0, 2.0, 4.0], [7.0, 8.0, 9.0, 0.0]])
    # Layer 3: 4 stays, 2 goes, the scores span 4. Layer 4 has three experts and keeps them all.
    assert margins(plan_of([0, 3], [0, 1, 2], scores=scores)) == (
        Margin(3, 4.0, 2.0, 0.5),
        Margin(4, 7.0, None, None),
    )
    against = margins(plan_of([0, 1], [1, 2], scores=scores))
    assert against[0].margin == (1 - 4) / 4
    same = margins(plan_of([0, 1], [1, 2], scores=np.ones((2, 4))))
    assert same[0] == Margin(3, 1.0, 1.0, None)


def test_merged_experts_stay():
    groups = ((ExpertGroup((0, 3), (0.5, 0.5)), ExpertGroup((2,))), pruning_groups([0, 1]))
    plan = CompressionPlan(LAYOUT, groups, "toy", np.array([[4.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]]))
    assert margins(plan)[0] == Margin(3, 2.0, 1.0, 1 / 3)


def test_overlap_by_hand():
    assert overlap(plan_of([0, 1, 2], [0, 1]), plan_of([1, 2, 3], [0, 1])) == (0.5, 1.0)


def test_plans_without_scores_have_no_margins():
    with pytest.raises(PlanError, match="'toy' has no scores, so no margins"):
        margins(plan_of([0, 1], [0, 1]))


def test_plans_of_different_models_do_not_compare():
    other = plan_of([0, 1], [0, 1], layout=MoELayout((0, 1), (4, 3), 2))
    with pytest.raises(PlanError, match="different models"):
        overlap(plan_of([0, 1], [0, 1]), other)


def test_layers_are_described_by_hand():
    groups = ((ExpertGroup((0, 3), (0.5, 0.5)), ExpertGroup((2,))), pruning_groups([0, 1, 2]))
    scores = np.array([[4.0, 1.0, 2.0, 3.0], [1 / 3, 2.0, 1.0, 0.0]])
    first, second = describe_layers(CompressionPlan(LAYOUT, groups, "toy", scores))
    assert first == {
        "layer": 3, "experts": 4, "kept": 2, "merged": 1, "margin": 0.333333, "lowest_kept": 2.0,
        "highest_dropped": 1.0,
    }  # fmt: skip
    assert (second["lowest_kept"], second["highest_dropped"], second["margin"]) == (0.333333, None, None)
    assert "margin" not in describe_layers(CompressionPlan(LAYOUT, groups, "toy"))[0]


def test_plans_are_compared_by_hand():
    merging = CompressionPlan(
        LAYOUT, ((ExpertGroup((1, 2), (0.5, 0.5)), ExpertGroup((3,))), pruning_groups([0, 2])), "b"
    )
    first, second = compare_layers(plan_of([0, 1, 3], [0, 1]), merging)
    assert first == {"layer": 3, "kept": [3, 3], "both": 2, "either": 4, "overlap": 0.5, "same_groups": 1}
    assert second == {"layer": 4, "kept": [2, 2], "both": 1, "either": 3, "overlap": 1 / 3, "same_groups": 1}
