"""Rounds give up only what is clearly worse; what a plan answered is asked once, whatever stops the sweep."""

import json

import pytest

from moe_compress.errors import PlanError
from moe_compress.evaluation.fast_choice import ChoiceScorer
from moe_compress.evaluation.loading import load_stock
from moe_compress.evaluation.masked import mask_experts
from moe_compress.evaluation.sweep import PlanTrials, find_clearly_worse, halve, why_not_masked
from moe_compress.evaluation.tasks import load_task, select_items
from moe_compress.types import CompressionPlan, ExpertGroup, ItemResult, MoELayout, pruning_groups

LAYOUT = MoELayout(layers=(0, 2), num_experts=(8, 8), top_k=2)
HELDOUT = {"toy": ["Which gland makes insulin?", "2 + 2 = 4"]}


def make_plan(*kept):
    return CompressionPlan(LAYOUT, tuple(map(pruning_groups, kept)), "any")


PLANS = {
    ("one", 0.5): make_plan((0, 1, 2, 3), (0, 1, 2, 3)),
    ("two", 0.5): make_plan((4, 5, 6, 7), (4, 5, 6, 7)),
    ("one", 0.25): make_plan((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)),
}


def items(rights):
    return tuple(ItemResult("toy", str(n), (0.0, -1.0), int(not right), 0) for n, right in enumerate(rights))


@pytest.fixture
def trials(folder, benchmark_file, tmp_path):
    return PlanTrials(load_stock(folder), tmp_path / "results", [load_task("toy", benchmark_file)], HELDOUT)


def test_who_is_clearly_worse():
    found = find_clearly_worse(
        {
            ("good", 0.5): items([True] * 30),
            ("near", 0.5): items([True] * 29 + [False]),  # the interval of one item of 30 reaches 0
            ("bad", 0.5): items([True] * 15 + [False] * 15),
            ("bad", 0.9): items([False] * 30),  # alone at its budget
        }
    )
    assert found == {("bad", 0.5): "good"}


def test_rounds_ask_more_of_those_that_stay(trials, monkeypatch):
    monkeypatch.setattr(
        "moe_compress.evaluation.sweep.find_clearly_worse",
        lambda answers: {("two", 0.5): "one"} if ("two", 0.5) in answers else {},
    )
    found = halve(trials, PLANS, "toy", [2, 4, 6], seed=0)
    assert {key: len(answers) for key, answers in found.answers.items()} == {
        ("one", 0.5): 6,
        ("two", 0.5): 2,
        ("one", 0.25): 6,
    }
    assert found.dropped_for == {("two", 0.5): "one"}


def test_answers_are_those_of_the_masked_model(trials, model, tokenizer, benchmark_file):
    task = load_task("toy", benchmark_file)
    plan = PLANS["one", 0.5]
    trials.answer(plan, "toy", 2, seed=3)
    found = trials.answer(plan, "toy", 5, seed=3)
    with mask_experts(model, plan.kept):
        expected = {item.item: item for item in ChoiceScorer(model, tokenizer, [task]).score()}
    assert [item.item for item in found] == [item.id for item in select_items(task.items, 5, 3)]
    for item in found:
        assert item.log_likelihoods == pytest.approx(expected[item.item].log_likelihoods, abs=1e-5)
    base = {item.item: item for item in ChoiceScorer(model, tokenizer, [task]).score()}
    for item in trials.answer(None, "toy", 6, seed=3):
        assert item.log_likelihoods == pytest.approx(base[item.item].log_likelihoods, abs=1e-5)


def test_nothing_is_asked_twice(trials, folder, benchmark_file, tmp_path, monkeypatch):
    first = trials.answer(PLANS["one", 0.5], "toy", 4, seed=0)
    measured = trials.measure(PLANS["one", 0.5])
    assert set(measured) == {"perplexity.toy", "kl.toy", "top1_agreement.toy"}
    again = PlanTrials(load_stock(folder), tmp_path / "results", [load_task("toy", benchmark_file)], HELDOUT)

    def refuse(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(PlanTrials, "_tried", refuse)
    assert again.answer(PLANS["one", 0.5], "toy", 4, seed=0) == first
    assert again.answer(PLANS["one", 0.5], "toy", 2, seed=0) == first[:0] + tuple(
        item
        for item in first
        if item.item in {i.id for i in select_items(load_task("toy", benchmark_file).items, 2, 0)}
    )
    assert again.measure(PLANS["one", 0.5]) == measured
    with pytest.raises(AssertionError, match="asked again"):
        again.answer(PLANS["one", 0.5], "toy", 5, seed=0)


@pytest.mark.parametrize("plan", [None, PLANS["one", 0.5]], ids=["base", "plan"])
def test_what_other_domains_left_is_extended_by_what_it_lacks(plan, folder, benchmark_file, tmp_path, monkeypatch):
    stock, tasks = load_stock(folder), [load_task("toy", benchmark_file)]
    other = {"other": ["The bank lends at four percent.", "Interest is due in May."]}
    first = PlanTrials(stock, tmp_path / "shared", tasks, HELDOUT).measure(plan)
    alone = PlanTrials(stock, tmp_path / "alone", tasks, other).measure(plan)
    assert alone.keys() == {"perplexity.other", "kl.other", "top1_agreement.other"}
    assert PlanTrials(stock, tmp_path / "shared", tasks, other).measure(plan) == alone
    monkeypatch.setattr(PlanTrials, "_measure", None)
    assert PlanTrials(stock, tmp_path / "shared", tasks, HELDOUT | other).measure(plan) == first | alone


def test_a_sweep_that_was_stopped_goes_on(trials, tmp_path, monkeypatch):
    asked = []
    ask = PlanTrials._ask

    def ask_twice(self, model, task):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(task.items)
        return ask(self, model, task)

    monkeypatch.setattr(PlanTrials, "_ask", ask_twice)
    with pytest.raises(KeyboardInterrupt):
        halve(trials, PLANS, "toy", [6], seed=0)
    files = sorted((tmp_path / "results").glob("*.json"))
    assert len(files) == 2 and all(len(json.loads(file.read_text())["items"]) == 6 for file in files)
    monkeypatch.setattr(PlanTrials, "_ask", ask)
    found = halve(trials, PLANS, "toy", [6], seed=0)
    assert {len(answers) for answers in found.answers.values()} == {6}


def test_families_whose_choices_cannot_be_packed_are_asked_by_the_harness(trials, monkeypatch):
    packed = trials.answer(PLANS["one", 0.5], "toy", 3, seed=0)
    monkeypatch.setattr("moe_compress.evaluation.sweep.PACKABLE", frozenset())
    monkeypatch.setattr(PlanTrials, "_read", lambda self, plan: {})
    for one, other in zip(packed, trials.answer(PLANS["one", 0.5], "toy", 3, seed=0), strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)


def test_plans_that_merge_cannot_be_masked(trials):
    merged = (ExpertGroup((0, 4), (0.5, 0.5)), *map(ExpertGroup, [(1,), (2,), (3,)]))
    plan = CompressionPlan(LAYOUT, (merged, merged), "merging")
    assert "merges experts" in why_not_masked(plan) and why_not_masked(PLANS["one", 0.5]) is None
    with pytest.raises(PlanError, match="'merging' merges experts"):
        trials.answer(plan, "toy", 2, seed=0)
