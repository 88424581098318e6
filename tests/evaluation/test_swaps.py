"""Swaps climb to where no swap helps, spend no more than they may, and go on where they were stopped."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from moe_compress.errors import PlanError
from moe_compress.evaluation.divergence import BasePredictions
from moe_compress.evaluation.masked import mask_experts
from moe_compress.evaluation.swaps import Measured, climb, refine_by_swaps
from moe_compress.types import CompressionPlan, ExpertGroup, MoELayout, pruning_groups

TEXTS = ["Which gland makes insulin?", "2 + 2 * 3", "Name a gas, and then another one that is heavier."] * 3
WORTH = np.random.default_rng(3).gamma(1.0, 1.0, (2, 8))


def make_plan(kept=((0, 1, 2, 3), (4, 5, 6, 7)), scores=None, layers=(0, 2), **layout):
    base = MoELayout(layers=layers, num_experts=(8, 8), top_k=2, **layout)
    return CompressionPlan(base, tuple(map(pruning_groups, kept)), "easy_ep", scores)


def lost(kept):
    """What the dropped experts were worth, and a little for each pair of neighbours among them."""
    total = 0.0
    for row, own in enumerate(kept):
        gone = [expert for expert in range(8) if expert not in own]
        total += sum(WORTH[row, expert] for expert in gone)
        total += sum(0.01 for one, other in itertools.pairwise(gone) if other == one + 1)
    return total


def no_swap_helps(kept):
    for row, own in enumerate(kept):
        for out, new in itertools.product(own, set(range(8)) - set(own)):
            changed = [*kept]
            changed[row] = tuple({*own, new} - {out})
            if lost(changed) < lost(kept):
                return False
    return True


@pytest.mark.parametrize("scores", [None, WORTH, -WORTH], ids=["no scores", "right scores", "wrong scores"])
def test_it_ends_where_no_swap_helps(scores):
    plan = make_plan(scores=scores)
    found = climb(plan, Measured(lost), swaps=10_000)
    assert found.num_tried < 10_000 and no_swap_helps(found.kept)
    assert found.kl_before == lost(plan.kept) and found.kl_after == lost(found.kept) < found.kl_before
    assert [len(own) for own in found.kept] == [4, 4]


def test_the_pair_nearest_the_cut_comes_first_and_layers_take_turns():
    scores = np.array([[8.0, 7, 6, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6, 7, 8]])
    seen = []

    def measure(kept):
        seen.append(kept)
        return 1.0

    climb(make_plan(scores=scores), Measured(measure), swaps=4)
    start, *proposals = seen
    swaps = [
        (row, *(set(start[row]) - set(kept[row])), *(set(kept[row]) - set(start[row])))
        for kept in proposals
        for row in range(2)
        if kept[row] != start[row]
    ]
    # The last kept of layer 0 is expert 3, the first dropped 4; of layer 1 it is 4, and 3. Then who had no turn.
    assert swaps == [(0, 3, 4), (1, 4, 3), (0, 2, 5), (1, 5, 2)]


def test_groups_of_the_router_stay_balanced():
    plan = make_plan(kept=((0, 1, 4, 5), (2, 3, 6, 7)), num_groups=2, topk_groups=1)
    found = climb(plan, Measured(lost), swaps=10_000)
    assert all(sum(expert < 4 for expert in own) == 2 for own in found.kept) and found.num_accepted
    replace(plan, groups=tuple(map(pruning_groups, found.kept)))  # a plan checks itself


def test_budgets_are_kept(monkeypatch):
    assert climb(make_plan(), Measured(lost), swaps=7).num_tried == 7
    assert climb(make_plan(), Measured(lost), swaps=0).num_tried == 0
    slow = Measured(lost)
    slow.seconds = 5.0
    assert climb(make_plan(), slow, swaps=100, seconds=4.0).num_tried == 0


def test_a_climb_that_was_stopped_goes_on(tmp_path):
    straight = climb(make_plan(), Measured(lost), swaps=30)
    climb(make_plan(), Measured(lost, tmp_path / "record.json"), swaps=11)
    assert len(json.loads((tmp_path / "record.json").read_text())["kl"]) == 12
    again = []

    def measure(kept):
        again.append(kept)
        return lost(kept)

    assert climb(make_plan(), Measured(measure, tmp_path / "record.json"), swaps=30) == straight
    assert len(again) == 30 - 11


def test_a_climb_that_dies_has_written_down_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_compress.evaluation.swaps._SAVE_SECONDS", 0.0)
    calls = itertools.count()

    def measure(kept):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return lost(kept)

    with pytest.raises(KeyboardInterrupt):
        climb(make_plan(), Measured(measure, tmp_path / "record.json"), swaps=30)
    assert len(json.loads((tmp_path / "record.json").read_text())["kl"]) == 6


def test_a_refined_plan_is_nearer_the_base_and_says_how_it_came_about(model, tokenizer, tmp_path):
    plan = replace(make_plan(), provenance={"seed": "1"})
    refined = refine_by_swaps(model, tokenizer, TEXTS, plan, swaps=40, record=tmp_path / "record.json")
    assert (refined.method, refined.new_layout) == ("easy_ep+swaps", plan.new_layout)
    base = BasePredictions(model, tokenizer, {"text": TEXTS})
    kl = []
    for each in (plan, refined):
        with mask_experts(model, each.kept):
            kl.append(base.compare(model)["text"].kl)
    assert kl[1] < 0.9 * kl[0]
    assert refined.provenance["swaps_kl"] == f"{kl[0]:.6g} -> {kl[1]:.6g}"
    assert refined.provenance["seed"] == "1" and refined.provenance["refined_from"] == "easy_ep"
    again = refine_by_swaps(model, tokenizer, TEXTS, plan, swaps=40)
    assert again.groups == refined.groups


def test_a_plan_that_merges_is_refused(model, tokenizer):
    merged = (ExpertGroup((0, 4), (0.5, 0.5)), *map(ExpertGroup, [(1,), (2,), (3,)]))
    plan = replace(make_plan(), groups=(merged, merged))
    with pytest.raises(PlanError, match="'easy_ep' merges experts"):
        refine_by_swaps(model, tokenizer, TEXTS, plan, swaps=1)


def test_a_plan_that_gives_up_groups_is_refused(model, tokenizer):
    plan = make_plan(kept=((0, 1, 2, 3), (0, 1, 2, 3)), num_groups=1)
    plan = replace(plan, router_groups="flatten", layout=replace(plan.layout, num_groups=2, topk_groups=2))
    with pytest.raises(PlanError, match="gives up the router's 2 groups"):
        refine_by_swaps(model, tokenizer, TEXTS, plan, swaps=1)
