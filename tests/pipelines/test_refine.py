"""Swaps between choosing and writing: a refined plan is written under its own key, and goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from moe_compress.pipelines.refine import find_record_key
from moe_compress.types import CompressionPlan, MoELayout, pruning_groups


def plans(project):
    return [json.loads(path.read_text()) for path in project.find("05_model_input/plans/medical/*/plan.json")]


def test_a_refined_plan_is_carried_out(project):
    result = project.prune("select.refine.swaps=12", "select.refine.tokens=200")
    assert result.exit_code == 0, result.output
    (plan,) = plans(project)
    assert plan["method"] == "easy_ep+swaps" and plan["provenance"]["swaps_tried"] == "12"
    before, after = map(float, plan["provenance"]["swaps_kl"].split(" -> "))
    assert after <= before
    (record,) = project.find("02_intermediate/refine/*.json")
    measured = json.loads(record.read_text())["kl"]
    assert len(measured) == 13

    # More swaps go on from there: what was measured is not measured again, and no second record begins.
    more = ("--to-nodes=medical.refine_plan", "--params=select.refine.swaps=14,select.refine.tokens=200")
    result = project.run("--pipelines=prune_medical", *more)
    assert result.exit_code == 0, result.output
    assert project.find("02_intermediate/refine/*.json") == [record]
    assert json.loads(record.read_text())["kl"][:13] == measured
    assert sorted(plan["provenance"]["swaps_tried"] for plan in plans(project)) == ["12", "14"]


@pytest.mark.parametrize("setting", ["swaps=-1", "seconds=0", "tokens=0"])
def test_budgets_that_are_none_are_refused(project, setting):
    result = project.prune(f"select.refine.{setting}")
    assert result.exit_code == 1 and "select.refine" in result.output


def test_merging_plans_are_refused(project):
    result = project.prune("select.method=group_and_merge", "select.refine.swaps=3")
    assert result.exit_code == 1 and "merges experts" in result.output


def test_every_score_is_part_of_a_records_key():
    layout = MoELayout(layers=(0, 1), num_experts=(600, 600), top_k=1)
    plan = CompressionPlan(layout, (pruning_groups(range(9)),) * 2, "easy_ep", scores=np.ones((2, 600)))
    other = plan.scores.copy()
    other[1, 300] = 2.0
    assert find_record_key(plan, "base") != find_record_key(replace(plan, scores=other), "base")
    assert find_record_key(plan, "base") == find_record_key(replace(plan, scores=np.ones((2, 600))), "base")
