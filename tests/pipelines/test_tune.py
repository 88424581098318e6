"""A run that tunes: the plan is the same, all three models are measured, and nothing happens unless asked for."""

from __future__ import annotations

import json

import mlflow
from tests.pipelines.conftest import write_rows

from moe_compress.evaluation.benchmarks import BenchmarkRequest
from moe_compress.pipelines.parameters import DomainParameters, EvaluateParameters
from moe_compress.pipelines.tune import DONE, choose_device, find_measured, find_texts, remove_finished
from moe_compress.registry.versions import resolve
from moe_compress.tuning.settings import TuneSettings
from moe_compress.tuning.texts import leave_out_measured
from moe_compress.types import Demonstrations

TUNE = ("tune.steps=4", "tune.eval_every=2", "tune.warmup_steps=1", "tune.learning_rate=0.01", "tune.device=cpu")


def registered():
    return resolve("moe-medical", "candidate").source.removeprefix("file://")


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_tuning_changes_the_weights_and_not_the_plan(pruned):
    """First a run without: nothing is loaded, copied or measured twice for it."""
    [before] = pruned.find("06_models/medical/*/checkpoint")
    assert len(pruned.find("07_model_output/evaluations/medical/*/evaluation.json")) == 1
    [record] = pruned.find("06_models/medical/*/tuning.json")
    assert json.loads(record.read_text()) == []
    assert pruned.find("02_intermediate/tune/medical") == []

    result = pruned.prune(*TUNE)
    assert result.exit_code == 0, result.output
    assert len(pruned.find("05_model_input/plans/medical/*/plan.json")) == 1
    [after] = set(pruned.find("06_models/medical/*/checkpoint")) - {before}
    assert registered().endswith(str(after.relative_to(pruned.folder)))
    assert weights(after).keys() == weights(before).keys() and weights(after) != weights(before)
    assert (after / "config.json").read_bytes() == (before / "config.json").read_bytes()
    assert len(pruned.find("07_model_output/evaluations/medical/*/evaluation.json")) == 2
    assert pruned.find("02_intermediate/tune/medical/*") == []

    run = mlflow.search_runs(search_all_experiments=True, order_by=["attributes.start_time DESC"]).iloc[0]
    assert run["params.tune.steps"] == "4"
    assert run["tags.pruned_weights_digest"] != run["tags.candidate_weights_digest"]
    assert 0 <= run["metrics.pruned.accuracy.medical"] <= 1
    pages = [path.read_text() for path in pruned.find("08_reporting/medical/*/report.html")]
    assert sorted("<h2>Tuning</h2>" in page for page in pages) == [False, True]
    assert "byte-identical" in (before / "README.md").read_text()
    card = (after / "README.md").read_text()
    assert "byte-identical" not in card and "Tuned after that" in card


def test_further_texts_are_read_and_what_is_measured_with_is_left_out(tmp_path):
    for name in ("medical", "math"):
        write_rows(
            tmp_path / name / "benchmark.jsonl",
            [{"id": "b", "kind": "k", "question": f"Which {name}?", "choices": ["a", "b"], "answer": 0}],
        )
    write_rows(tmp_path / "math" / "heldout.jsonl", [{"text": "Held out, this."}])
    write_rows(tmp_path / "more.jsonl", [{"text": "which MATH?"}, {"text": "more"}, {"text": "held out, this"}])
    demonstrations = Demonstrations("medical", ("1", "2"), ("one", "Which medical? a"), "digest")
    texts = find_texts([demonstrations, demonstrations], TuneSettings(text=str(tmp_path / "more.jsonl")))
    assert len(texts) == 5
    own = DomainParameters(name="medical", registered_model="m")
    measured = find_measured(tmp_path, EvaluateParameters(tasks=("math",)), own, BenchmarkRequest())
    assert leave_out_measured(texts, measured) == ["one", "more"]


def test_a_device_that_is_named_is_taken():
    assert choose_device("cpu") == "cpu" and choose_device("auto") in ("cpu", "cuda")


def test_only_what_is_done_is_removed(tmp_path):
    for name in ("open", "over"):
        (tmp_path / name).mkdir()
    (tmp_path / "over" / DONE).touch()
    remove_finished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["open"]
