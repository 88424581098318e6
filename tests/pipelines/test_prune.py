"""The whole job from rows to a registered version, what a second run skips, and what stops it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.pyfunc import load_model as load_pyfunc
from transformers import AutoModelForCausalLM

import moe_compress
from moe_compress.operations.verify import verify_version
from moe_compress.registry.versions import resolve


def load_registered(name):
    folder = resolve(name, "candidate").source.removeprefix("file://")
    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)


def outputs(project):
    """Return every value a stage saved, and when."""
    files = [*project.find("0[4567]*/**/*.safetensors"), *project.find("0[4567]*/**/*.json")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_run_ends_with_a_registered_smaller_model(project):
    result = project.prune()
    assert result.exit_code == 0, result.output
    model, info = load_registered("moe-medical")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.n_routed_experts == 8
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    assert "Registered as moe-medical version 1" in result.output
    assert len(project.find("08_reporting/medical/*/report.html")) == 1

    run = mlflow.search_runs(search_all_experiments=True).iloc[0]
    assert run["status"] == "FINISHED"
    told = mlflow.get_run(run["run_id"]).data.params
    assert told["select.method"] == "easy_ep" and told["domains.medical.name"] == "medical"
    # Each once under its own name, and none as the text of a whole block.
    assert told.keys().isdisjoint({"select", "domains.medical", "parameters.select", "parameters.data.seed"})
    assert run["tags.gates_passed"] == "true"
    assert 0 <= run["metrics.candidate.accuracy.medical"] <= 1
    assert 0 < run["metrics.split_half_jaccard"] <= 1 and -1 <= run["metrics.split_half_spearman"] <= 1


def test_the_same_inputs_are_skipped_and_give_the_same_version(pruned):
    written = outputs(pruned)
    assert pruned.prune().exit_code == 0
    assert outputs(pruned) == written and len(written) >= 5
    assert resolve("moe-medical", "candidate").version == "1"


@pytest.mark.usefixtures("one_figure")
def test_fresh_runs_everything_again_and_gives_the_same_bits(pruned):
    written, contents = outputs(pruned), {path: path.read_bytes() for path in outputs(pruned)}
    result = pruned.run("--pipelines=prune_medical", "--fresh")
    assert result.exit_code == 0, result.output
    again = outputs(pruned)
    # A checkpoint that is written again with the same bytes stays: it may be in use, and has its records beside it.
    stays = {path for path in written if path.parent.name == "checkpoint"}
    assert set(again) == set(written) and {path for path in again if again[path] == written[path]} == stays
    # Statistics, plan, weights, every item's likelihoods, texts, probes.
    assert [str(path) for path, content in contents.items() if path.read_bytes() != content] == []


def test_a_csv_with_numbers(project):
    path = project.folder / "data/01_raw/domains/math/demonstrations.jsonl"
    path.unlink()
    rows = [f"{number},What is {number} plus 1?,{number + 1}" for number in range(12)]
    path.with_suffix(".csv").write_text("\n".join(["id,question,answer", *rows]))
    assert project.run("--pipelines=prune_math", "--to-nodes=math.gate_statistics").exit_code == 0
    assert len(project.find("04_feature/statistics/math/*/statistics.safetensors")) == 1


def test_another_method_uses_the_same_statistics(pruned):
    planned = ("--pipelines=prune_medical", "--to-nodes=medical.refine_plan")
    assert pruned.run(*planned, "--params=select.method=frequency").exit_code == 0
    assert len(pruned.find("04_feature/statistics/medical/*/statistics.safetensors")) == 1
    plans = [json.loads(path.read_text()) for path in pruned.find("05_model_input/plans/medical/*/plan.json")]
    assert sorted(plan["method"] for plan in plans) == ["easy_ep", "frequency"]


def test_another_domain_reuses_the_baseline(pruned):
    (measured,) = pruned.find("07_model_output/evaluations/baseline/*/evaluation.json")
    before = measured.stat().st_mtime_ns
    assert pruned.run("--pipelines=prune_math", "--to-outputs=math.baseline_evaluation").exit_code == 0
    assert pruned.find("07_model_output/evaluations/baseline/*/evaluation.json") == [measured]
    assert measured.stat().st_mtime_ns == before


@pytest.mark.usefixtures("one_figure")
def test_a_failing_gate_fails_the_run_and_registers_nothing(project):
    result = project.prune("gates.size_reduced.at_most=0.1")
    assert result.exit_code == 1
    assert "size_reduced is 0." in result.output and "must be at most 0.1" in result.output
    assert mlflow.MlflowClient().search_registered_models() == []
    assert mlflow.search_runs(search_all_experiments=True).iloc[0]["status"] == "FAILED"
    # The page that says why is there, and once the limit is lifted the same work is released.
    assert len(project.find("08_reporting/medical/*/report.html")) == 1
    assert project.prune().exit_code == 0


@pytest.mark.usefixtures("one_figure")
def test_what_is_registered_outlasts_a_fresh_run_that_fails_a_gate(pruned):
    version = resolve("moe-medical", "candidate")
    result = pruned.run("--pipelines=prune_medical", "--fresh", "--params=gates.size_reduced.at_most=0.1")
    assert result.exit_code == 1 and "must be at most 0.1" in result.output
    assert verify_version(version)["intact"], verify_version(version)
    assert load_pyfunc(str(version.folder)).predict("fever cough", params={"max_new_tokens": 2})


def change_weights_unnoticed(project):
    """Change the base model's weights, but not the size and time under which their digest is remembered.

    What is written then has other bytes under the same key, as it may on another device.
    """
    (file,) = project.find("01_raw/model/*.safetensors")
    status, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-2] + b"\x40\x40")  # 3.0 in BF16
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.usefixtures("one_figure")
def test_what_is_registered_outlasts_a_fresh_run_that_writes_other_bytes(pruned):
    first = resolve("moe-medical", "candidate")
    change_weights_unnoticed(pruned)
    assert pruned.run("--pipelines=collect_medical", "--fresh").exit_code == 0
    # The statistics are others by now, and what was made from the old ones is not taken for theirs.
    result = pruned.prune("gates.size_reduced.at_most=0.1")
    assert result.exit_code == 1 and "must be at most 0.1" in result.output
    assert verify_version(first)["intact"], verify_version(first)
    assert resolve("moe-medical", "candidate").version == "1"
    # What was written is released once the limit is lifted, and is a version of its own.
    written = outputs(pruned)
    assert pruned.prune().exit_code == 0 and outputs(pruned).keys() - written.keys() == set()
    second = resolve("moe-medical", "candidate")
    assert second.version == "2" and second.folder != first.folder
    assert verify_version(first)["intact"] and verify_version(second)["intact"]


@pytest.mark.usefixtures("one_figure")
def test_a_new_domain_needs_a_folder_and_a_block(project):
    source = project.folder / "data/01_raw/domains/finance"
    source.rename(source.with_name("legal"))
    source.with_name("finance").symlink_to(source.with_name("legal"))
    (project.folder / "conf/local/parameters_domains.yml").write_text(
        "domains: {legal: {name: legal, registered_model: moe-legal}}\n"
    )
    from kedro.framework.project import pipelines

    pipelines.configure("moe_compress.pipeline_registry")
    result = project.prune(domain="legal")
    assert result.exit_code == 0, result.output
    assert resolve("moe-legal", "candidate").version == "1"


def test_a_budget_by_count(pruned):
    budget = "--params=select.budget.experts_per_layer=6,select.budget.fraction_dropped=null"
    result = pruned.run("--pipelines=prune_medical", "--to-nodes=medical.rewrite_checkpoint", budget)
    assert result.exit_code == 0, result.output
    configs = [json.loads(path.read_text()) for path in pruned.find("06_models/medical/*/checkpoint/config.json")]
    assert sorted(config["n_routed_experts"] for config in configs) == [6, 8]


@pytest.mark.parametrize("method", ["seer", "easy_ep"])
def test_layers_that_compete_end_as_a_registered_model_of_uneven_layers(project, method):
    result = project.prune(
        f"select.method={method}", "select.budget.scope=global", "rewrite.layout=per_layer", "select.seed=3"
    )
    assert result.exit_code == 0, result.output
    folder = resolve("moe-medical", "candidate").source.removeprefix("file://")
    model, info = moe_compress.load_model(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    counts = [layer.mlp.experts.num_experts for layer in model.model.layers[1:]]
    assert sum(counts) == 16 and len(set(counts)) == 2
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    [generated] = load_pyfunc(folder).predict("fever cough", params={"max_new_tokens": 4})
    assert isinstance(generated, str)
    card = (Path(folder) / "README.md").read_text()
    assert "moe_compress.load_model" in card and "AutoModelForCausalLM" not in card
    verdicts = json.loads(next(iter(project.find("06_models/medical/*/compatibility.json"))).read_text())
    assert {each["engine"]: each["verdict"] for each in verdicts} == dict.fromkeys(
        ["transformers", "vLLM", "SGLang", "llama.cpp"], "no"
    )


def test_who_can_load_it_is_said_before_a_byte_is_written(project, caplog):
    written = ("--pipelines=prune_medical", "--to-nodes=medical.rewrite_checkpoint")
    with caplog.at_level("INFO", logger="moe_compress"):
        assert project.run(*written, "--params=rewrite.max_shard_bytes=1000000").exit_code == 0
    messages = [record.getMessage() for record in caplog.records]
    (table,) = (message for message in messages if "who is expected to load" in message)
    assert "\ntransformers  loads\nvLLM          loads (not run)\n" in table
    (told,) = project.find("06_models/medical/*/compatibility.json")
    (written,) = project.find("06_models/medical/*/checkpoint/config.json")
    assert told.stat().st_mtime_ns < written.stat().st_mtime_ns
