"""What gates may ask for, from values made by hand."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from moe_compress.evaluation.compare import compare_results
from moe_compress.gates.decide import decide, parse_gates
from moe_compress.pipelines.measure import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    finite_only,
    measure,
    measure_probes,
    name_worst,
    tell_worst,
)
from moe_compress.types import EvaluationResult, ItemResult, LayerProbe, ProbeResult, Speed, Throughput, WrittenText

ROOT = Path(__file__).parents[2]
BEFORE_SPEED = Throughput(
    2.0, 400, "process", {1: Speed(100.0), 8: Speed(500.0)}, {1: Speed(10.0), 8: Speed(40.0)}, 60.0
)
AFTER_SPEED = Throughput(
    1.0, 300, "process", {1: Speed(150.0), 8: Speed(600.0, 0.25)}, {1: Speed(20.0), 8: Speed(math.nan)}, 30.0
)
LAYERS = (LayerProbe(1, 0.2, 0.1, 0.5, 2.0, 0.4), LayerProbe(3, 0.4, 0.3, 0.6, 1.5, 0.9))


def items(right):
    return tuple(
        ItemResult("quiz", f"q{number}", (0.0, 0.0), 0 if flag else 1, 0) for number, flag in enumerate(right)
    )


def result(right, perplexity, loops, ended, **overrides):
    texts = tuple(
        WrittenText("quiz", f"q{number}", "", 10, done, loop, 0.5)
        for number, (loop, done) in enumerate(zip(loops, ended, strict=True))
    )
    settings = {
        "num_parameters": 100,
        "num_bytes": 1000,
        "tokens_per_second": 500.0,
        "provenance": {"missing_keys": "0", "unexpected_keys": "2"},
    }
    return EvaluationResult("any", items(right), {"quiz": perplexity}, written=texts, **(settings | overrides))


@pytest.fixture
def measured():
    before = result([True] * 8 + [False] * 2, 4.0, [False, False], [True, True])
    after = result([True] * 7 + [False] * 3, 5.0, [True, False], [True, False], num_parameters=50)
    probes = ProbeResult({"quiz": 0.3}, {"quiz": 0.8}, LAYERS, ("layer 1 expert 0, which was expert 2",))
    comparisons = compare_results(before, after)
    return measure(before, after, comparisons, probes, (BEFORE_SPEED, AFTER_SPEED), (), ["quiz"])


def test_tasks_and_their_bounds(measured):
    values = measured.values
    assert (values["accuracy.quiz"], measured.baseline["accuracy.quiz"]) == (0.7, 0.8)
    assert values["difference.quiz"] == pytest.approx(-0.1)
    assert values["difference.quiz.low"] < -0.1 < values["difference.quiz.high"] <= 0
    assert values["share_kept.quiz"] == pytest.approx(0.2 / 0.3)
    assert (values["lost.quiz"], values["gained.quiz"]) == (0.1, 0.0)
    assert values["accuracy.domain.low"] == values["accuracy.quiz.low"] < 0.7


def test_ratios_and_changes(measured):
    expected = {
        "perplexity_ratio.quiz": 5 / 4,
        "loops_added.quiz": 0.5,
        "ended_change.quiz": -0.5,
        "length_ratio.quiz": 1.0,
        "repetition_added.quiz": 0.0,
        "parameter_ratio": 0.5,
        "size_ratio": 1.0,
        "load_ratio": 0.5,
        "peak_memory_ratio": 0.75,
        "prefill_ratio.8": 1.2,
        "prefill_spread.8": 0.25,
        "yardstick_ratio": 0.5,
        "decode_ratio.1": 2.0,
        "missing_keys": 0.0,
        "unexpected_keys": 2.0,
        "faults": 0.0,
    }
    assert {name: measured.values[name] for name in expected} == pytest.approx(expected)


def test_what_is_no_number_stays_for_gates_to_fail_on(measured):
    assert math.isnan(measured.values["decode_tokens_per_second.8"])
    assert math.isnan(measured.values["decode_ratio.8"])
    assert measured.baseline["decode_tokens_per_second.8"] == 40.0
    assert finite_only({"a": 1.0, "b": math.nan, "c": -math.inf}) == {"a": 1.0}


def test_a_gate_on_a_baseline_that_only_guesses_says_so():
    before, after = (result([True, False], 4.0, [False], [True]) for _ in range(2))
    found = measure(
        before, after, compare_results(before, after), ProbeResult(), (BEFORE_SPEED, AFTER_SPEED), (), ["quiz"]
    )
    gates = parse_gates(
        [
            {"name": "task", "metric": "share_kept.quiz", "at_least": 0.8},
            {"name": "domain", "metric": "share_kept.domain", "at_least": 0.8},
            {"name": "end", "metric": "share_kept.domain", "bound": "low", "at_least": 0.8},
        ]
    )
    task, domain, end = decide(gates, found.values).outcomes
    assert not (task.passed or domain.passed or end.passed)
    assert "the baseline answers no better than guessing" in task.description
    assert "the baseline answers no better than guessing" in domain.description
    assert "-inf" in end.description and "the baseline answers so little better than guessing" in end.description


def test_every_metric_of_a_domain_is_better_high_or_low(measured):
    """A new metric has no worst domain until it stands on one side."""
    kinds = {name.split(".")[0] for name in measured.values if name.split(".")[1:2] == ["quiz"]}
    assert kinds == HIGHER_IS_BETTER | LOWER_IS_BETTER and not HIGHER_IS_BETTER & LOWER_IS_BETTER
    listed = re.findall(r"`(\w+)\.<(?:task|domain)>`", (ROOT / "docs/gates.md").read_text())
    assert set(listed) == kinds


@pytest.mark.parametrize(
    ("kind", "worse", "better"),
    [("ended", 0.1, 0.9), ("ended_change", -0.8, 0.0), ("gained", 0.0, 0.2), ("lost", 0.2, 0.0), ("kl", 0.5, 0.1)],
)
def test_the_worst_domain_is_the_one_a_gate_should_fail_on(kind, worse, better):
    values = {f"{kind}.a": better, f"{kind}.b": worse}
    assert name_worst(values, ["a", "b"])[f"{kind}.domain"] == worse
    assert tell_worst(values, ["a", "b"]) == {f"{kind}.domain": "domain b"}


def test_the_worst_layer_and_its_place(measured):
    values, places = measured.values, measured.places
    assert (values["router_drift"], places["router_drift"]) == (0.4, "layer 3")
    assert (values["load_peak"], places["load_peak"]) == (2.0, "layer 1")
    assert values["router_drift_mean"] == pytest.approx(0.3) and values["router_weight_lost"] == pytest.approx(0.2)
    assert (values["load_cv"], measured.baseline["load_cv"]) == (0.6, 0.9)
    assert values["router_rows_changed"] == 1 and "layer 1 expert 0" in places["router_rows_changed"]
    assert values["kl.domain"] == 0.3 and values["top1_agreement.domain"] == 0.8


def test_a_broken_candidate_has_its_fault_and_no_answers():
    before = result([True] * 3, 4.0, [False], [True])
    broken = EvaluationResult("any", (), {}, 1, 1, fault="candidate holds NaN in x")
    found = measure(before, broken, {}, ProbeResult(), (BEFORE_SPEED, AFTER_SPEED), (), ["quiz"])
    assert (found.values["faults"], found.places["faults"]) == (1.0, "candidate holds NaN in x")
    assert not any(name.startswith(("accuracy", "kl", "loops", "missing_keys")) for name in found.values)


def test_what_was_not_probed_is_not_measured():
    assert measure_probes(ProbeResult()).values == {}


def test_a_task_that_only_begins_like_the_domain_is_not_it():
    assert name_worst({"accuracy.medical_exam": 1.0, "size_ratio": 0.5}, ["medical"]) == {
        "accuracy.medical_exam": 1.0,
        "size_ratio": 0.5,
    }


@pytest.mark.parametrize("layers", [LAYERS, LAYERS[::-1]])
def test_a_layer_without_a_finite_number_is_the_worst_wherever_it_stands(layers):
    broken = tuple(replace(layer, drift=math.nan) if layer.layer == 1 else layer for layer in layers)
    found = measure_probes(ProbeResult(layers=broken))
    assert math.isnan(found.values["router_drift"]) and found.places["router_drift"] == "layer 1"
    assert found.places["load_peak"] == "layer 1" and found.places["load_cv"] == "layer 3"
