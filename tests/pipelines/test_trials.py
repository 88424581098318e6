"""What the mask says of a plan is what its written checkpoint does, item for item and byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moe_compress.checkpoint.digest import settings_digest, weights_digest
from moe_compress.checkpoint.index import read_index
from moe_compress.evaluation.evaluate import evaluate_checkpoint
from moe_compress.evaluation.sweep import Round
from moe_compress.evaluation.tasks import load_task
from moe_compress.evaluation.throughput import measure_size
from moe_compress.families.derive import derive_tensor_map
from moe_compress.gates.decide import parse_gates
from moe_compress.pipelines.parameters import EvaluateParameters, RewriteParameters
from moe_compress.pipelines.sweep import find_tasks, is_judged, judge
from moe_compress.pipelines.trials import MASKED_METRICS, Bench
from moe_compress.types import CheckpointReference, CompressionPlan, as_json, pruning_groups

KEPT = [
    (range(12), range(4, 16)),
    (range(0, 16, 2), range(1, 16, 2)),
    ((0, 3, 5, 9, 14), (1, 2, 7, 10, 15)),
]


EVALUATE = EvaluateParameters(tasks=("medical", "code"))


@pytest.fixture
def make_bench(inputs, tmp_path):
    """Return a function that makes a bench for tasks, the domain's own first, with its results in a folder."""
    model = inputs / "model"
    reference = CheckpointReference(model, "tiny", weights_digest(model, None), settings_digest(model))

    def make(*tasks, folder="trials"):
        return Bench(reference, tasks, inputs / "domains", tmp_path / folder, EVALUATE, RewriteParameters(), False)

    return make


@pytest.fixture
def bench(make_bench):
    return make_bench("medical", "code")


def make_plan(inputs, kept):
    index = read_index(inputs / "model")
    layout = derive_tensor_map(index.config, index.shapes).layout
    return CompressionPlan(layout, tuple(map(pruning_groups, kept)), "any")


@pytest.mark.parametrize("kept", KEPT, ids=["12 of 16", "8 of 16", "5 of 16"])
def test_masked_answers_and_sizes_are_those_of_the_written_checkpoint(bench, inputs, tmp_path, kept):
    plan = make_plan(inputs, kept)
    check = bench.check(plan)
    assert (check.num_items, check.num_different) == (24, 0) and check.largest < 1e-4
    bench._write(plan, tmp_path / "written")
    files = {name: inputs / "domains" / name / "benchmark.jsonl" for name in ("medical", "code")}
    tasks = [load_task(name, file) for name, file in files.items()]
    written = evaluate_checkpoint(tmp_path / "written", tasks, {})
    for task, items in bench.answer(plan).items():
        assert [item.chosen for item in items] == [item.chosen for item in written.items_of(task)]
    before, after = measure_size(inputs / "model"), measure_size(tmp_path / "written")
    assert bench.size(plan) == {
        "size_ratio": pytest.approx(after.num_bytes / before.num_bytes),
        "parameter_ratio": pytest.approx(after.num_parameters / before.num_parameters),
    }


def test_what_gates_may_ask_of_a_plan(bench, inputs):
    measured = bench.measure(make_plan(inputs, KEPT[1]))
    kinds = ("accuracy", "difference", "perplexity_ratio", "kl", "top1_agreement")
    expected = {f"{kind}.{task}" for kind in kinds for task in ("medical", "code", "domain")}
    assert expected | {"size_ratio", "parameter_ratio", "difference.domain.low"} <= set(measured)
    assert {name.split(".")[0] for name in measured} == MASKED_METRICS
    assert set(bench.base_values) >= {"accuracy.domain", "perplexity.domain", "accuracy.code"}
    assert measured["kl.domain"] == measured["kl.medical"] > 0
    everything = bench.measure(make_plan(inputs, (range(16), range(16))))
    assert everything["difference.domain"] == 0 and everything["perplexity_ratio.domain"] == pytest.approx(1)
    assert everything["kl.domain"] == pytest.approx(0, abs=1e-5) and everything["size_ratio"] == pytest.approx(
        1, rel=1e-3
    )


def test_a_plan_is_put_to_the_same_gates_as_a_written_model(bench, inputs):
    plan, key = make_plan(inputs, KEPT[1]), ("any", 0.5)
    ratio = bench.measure(plan)["perplexity_ratio.medical"]
    answers = Round({key: bench.answer(plan)["medical"]}, {})
    relative = {"metric": "perplexity.domain", "at_most": {"of": "baseline", "times": ratio * (1 - 1e-6)}}
    specs = parse_gates(
        [
            {"name": "strict", **relative},
            {
                "name": "loose",
                "metric": "perplexity.domain",
                "at_most": {"of": "baseline", "times": ratio * (1 + 1e-6)},
            },
            {"name": "ends", "metric": "difference.domain", "bound": "high", "at_most": -1},
            {"name": "rival", "metric": "accuracy.domain", "at_least": {"of": "champion", "plus": 1}},
        ]
    )
    entry = judge(key, plan, bench, answers, specs, "medical")
    assert [failure.split()[0] for failure in entry.failures] == ["strict", "ends"]
    assert "the baseline's" in entry.failures[0]


def test_domains_that_share_a_folder_are_each_measured_in_full(make_bench, inputs):
    plan = make_plan(inputs, KEPT[1])
    make_bench("medical").measure(plan)
    shared, alone = make_bench("code"), make_bench("code", folder="others")
    assert repr(shared.measure(plan)) == repr(alone.measure(plan))
    assert repr(shared.base_values) == repr(alone.base_values)


@pytest.mark.parametrize(
    ("gate", "judged"),
    [
        ({"metric": "kl.domain", "at_most": 1}, True),
        ({"metric": "kl.{domain}", "at_most": 1}, True),
        ({"metric": "share_kept.code", "bound": "low", "at_least": 0.5}, True),
        ({"metric": "size_ratio", "at_most": 1}, True),
        ({"metric": "perplexity.domain", "at_most": {"of": "baseline", "times": 2}}, True),
        ({"metric": "accuracy.domain", "at_least": {"of": "champion"}}, False),
        ({"metric": "share_kept.pooled", "at_least": 0.5}, False),
        ({"metric": "loops_added.domain", "at_most": 0}, False),
        ({"metric": "missing_keys", "at_most": 0}, False),
    ],
)
def test_a_gate_is_judged_by_what_it_asks_for(gate, judged):
    (spec,) = parse_gates([{"name": "gate", **gate}])
    assert is_judged(spec, find_tasks([spec], EVALUATE, "medical"), "medical") == judged


def test_a_plan_without_a_value_fails_its_gate(make_bench, inputs):
    plan, key = make_plan(inputs, KEPT[1]), ("any", 0.5)
    bench = make_bench("medical")
    # A base that gets nothing right has no share to keep.
    wrong = tuple(replace(item, chosen=item.answer + 1) for item in bench.answer(None)["medical"])
    bench.__dict__["_base_answers"] = {"medical": wrong}
    specs = parse_gates(
        [
            {"name": "text", "metric": "kl.code", "at_most": 1e9},
            {"name": "kept", "metric": "share_kept.domain", "at_least": 0.0},
        ]
    )
    found = Round({key: bench.answer(plan)["medical"]}, {})
    entry = judge(key, plan, bench, found, specs, "medical")
    assert [failure.split()[0] for failure in entry.failures] == ["text", "kept"] and not entry.passes
    assert "the baseline answers no better than guessing" in entry.failures[1]
    json.dumps(as_json(entry), allow_nan=False)
    given_up = judge(key, plan, bench, replace(found, dropped_for={key: "better"}), specs, "medical")
    assert (given_up.measured, given_up.failures) == ({}, ())
