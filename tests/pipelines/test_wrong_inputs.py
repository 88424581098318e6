"""Each wrong input: one sentence, exit code 1, and nothing written."""

from __future__ import annotations

import json
import shutil

import mlflow
import pytest
from tests.pipelines.conftest import write_rows
from transformers import LlamaConfig, LlamaForCausalLM


def rows_of(project):
    path = project.folder / "data/01_raw/domains/medical/demonstrations.jsonl"
    return path, [json.loads(line) for line in path.read_text().splitlines()]


def assert_refused(project, result, *parts):
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("Error: ")
    for part in parts:
        assert part in message
    assert "Traceback" not in result.output
    assert project.find("0[4567]*/**/*.*") == []
    runs = mlflow.search_runs(search_all_experiments=True)
    assert runs.empty or set(runs["status"]) == {"FAILED"}


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        (["select.method=easyep"], ["no 'easyep' in methods/", "did you mean 'easy_ep'"]),
        (
            ["select.budget.experts_per_layer=2", "select.budget.fraction_dropped=null"],
            ["layer 1 would keep 2 experts", "top_k=4", "select.budget"],
        ),
        (
            ["select.budget.experts_per_layer=17", "select.budget.fraction_dropped=null"],
            ["layer 1 would keep 17 experts, but it has 16"],
        ),
        (
            ["select.budget.scope=global"],
            [
                "select.budget.scope is 'global'",
                "set rewrite.layout to per_layer",
                "or select.budget.scope to per_layer",
            ],
        ),
        (
            ["select.budget.fraction_dropped=0", "select.budget.multiple_of=10"],
            ["layer 1 would keep 20 experts to reach a multiple of 10, but it has 16"],
        ),
        (
            ["select.method=c_prune", "select.parameters.gama=2"],
            ["c_prune has no parameter 'gama'", "did you mean 'gamma'", "select.parameters"],
        ),
        (
            ["select.method=c_prune", "select.parameters.score=hc_smoe"],
            ["parameter 'score' is 'hc_smoe', which plans by itself", "name a method that scores"],
        ),
        (
            ["select.method=c_prune", "select.budget.scope=importance", "rewrite.layout=per_layer"],
            ["c_prune plans by itself and has no layer scores to share a total by", "select.budget.scope"],
        ),
        (["select.metod=reap"], ["select.metod", "is not a parameter"]),
        (["slect.method=reap"], ["--params names 'slect'", "did you mean 'select'"]),
        (["domains.medcal.select.method=reap"], ["'domains.medcal'", "did you mean 'domains.medical'", "general"]),
        (["collect.batch_size=0"], ["collect.batch_size", "greater than or equal to 1"]),
        (["select.seed=-1"], ["select.seed", "greater than or equal to 0"]),
        (["collect.statistics=[embeding]"], ["no statistic 'embeding'", "did you mean 'embedding'"]),
        (["tune.steps=4", "tune.text=nowhere.jsonl"], ["no file nowhere.jsonl; correct tune.text"]),
        (["base_model=data/01_raw/nowhere"], ["data/01_raw/nowhere", "config.json"]),
    ],
)
def test_parameters(project, params, parts):
    assert_refused(project, project.prune(*params), *parts)


def test_an_unknown_domain(project):
    assert_refused(
        project,
        project.prune(domain="dental"),
        "no pipeline 'prune_dental'",
        "'dental: {name: dental, ",
        "prune_medical",
    )


def test_missing_demonstrations(project):
    rows_of(project)[0].unlink()
    assert_refused(project, project.prune(), "no demonstrations at", "'question' and 'answer'")


def test_empty_demonstrations(project):
    rows_of(project)[0].write_text("")
    assert_refused(project, project.prune(), "demonstrations.jsonl is empty")


def test_a_missing_column(project):
    path, rows = rows_of(project)
    write_rows(path, [{"id": row["id"], "prompt": row["question"], "answer": row["answer"]} for row in rows])
    assert_refused(project, project.prune(), "demonstrations.jsonl has no column 'question'", "'prompt'")


def test_a_demonstration_from_the_benchmark(project):
    path, rows = rows_of(project)
    benchmark = path.with_name("benchmark.jsonl")
    question = json.loads(benchmark.read_text().splitlines()[3])["question"]
    rows[5]["question"] = question.upper() + " ?"
    write_rows(path, rows)
    assert_refused(
        project, project.prune(), "1 demonstration of domain 'medical' is also in its benchmark", "row 6"
    )


def test_a_missing_shard(project):
    from transformers import AutoModelForCausalLM

    folder = project.folder / "data/01_raw/model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert_refused(project, project.prune(), shard.name)


def test_an_architecture_nobody_knows(project):
    path = project.folder / "data/01_raw/model/config.json"
    unknown = {"model_type": "no_such_model", "architectures": ["NoSuchModel"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **unknown}))
    assert_refused(project, project.prune(), "'no_such_model'")


def test_a_dense_model(project):
    folder = project.folder / "data/01_raw/model"
    (folder / "model.safetensors").unlink()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(folder)
    assert_refused(project, project.prune(), "'llama'", "expert")


def test_a_domain_without_a_benchmark(project):
    (project.folder / "data/01_raw/domains/medical/benchmark.jsonl").unlink()
    assert_refused(
        project, project.prune(), "no questions to measure 'medical' with", "benchmark.jsonl", '"choices"'
    )


def test_too_few_demonstrations_of_a_table(project):
    path, rows = rows_of(project)
    path.unlink()
    table = path.with_suffix(".csv")
    table.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows[:5]))
    assert_refused(project, project.prune(), "5 demonstrations", "data.min_demonstrations", str(table))


def test_a_misspelt_gate(project):
    assert_refused(project, project.prune("gates.size_reduced.at_mots=0.5"), "at_mots", "did you mean 'at_most'")


def test_a_gate_that_is_no_block(project):
    assert_refused(project, project.prune("gates.size_reduced=0.5"), "gates.size_reduced is 0.5, not a block")


def write_domains(project, text):
    (project.folder / "conf/local/parameters_domains.yml").write_text(f"domains: {text}\n")


def test_a_misspelt_setting_of_a_domain(project):
    write_domains(project, "{medical: {select: {metod: reap}}}")
    assert_refused(project, project.prune(), "metod", "is not a parameter")


def test_a_block_under_another_name(project):
    write_domains(project, "{medical: {name: math}}")
    assert_refused(project, project.prune(), "domains.medical.name is 'math'", "write name: medical")


def test_an_environment_that_is_not_there(project):
    result = project.run("--pipelines=prune_medical", "--env=typo")
    assert_refused(project, result, "typo", "see conf/")


def test_two_domains_at_once(project):
    result = project.run("--pipelines=prune_medical,prune_math")
    assert_refused(project, result, "one run compresses for one domain, not for math, medical")


def test_nothing_is_left_behind(project):
    shutil.rmtree(project.folder / "data/01_raw/domains")
    assert_refused(project, project.prune(), "no demonstrations at")
    assert {path.name for path in (project.folder / "data").iterdir()} <= {"01_raw", "02_intermediate"}
