"""`kedro plan` as a user types it: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from tests.pipelines.conftest import make_model

from moe_compress.plan_commands import plan
from moe_compress.plans.document import write_document
from moe_compress.types import CompressionPlan, ExpertGroup, MoELayout, pruning_groups

LAYOUT = MoELayout((1, 2), (16, 16), 4)  # of the model that `make_model` writes
EVEN, ODD = list(range(0, 16, 2)), list(range(1, 16, 2))


def write(folder, name, *groups, method="toy", layout=LAYOUT):
    made = CompressionPlan(layout, tuple(groups), method, provenance={"seed": "1"})
    (folder / name).write_text(write_document(made))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "even.json", pruning_groups(EVEN), pruning_groups(EVEN))
    write(tmp_path, "odd.json", pruning_groups(ODD), pruning_groups(EVEN), method="other")
    merging = tuple(ExpertGroup((expert, expert + 8), (0.5, 0.5)) for expert in range(8))
    write(tmp_path, "merging.json", merging, merging)
    write(tmp_path, "uneven.json", pruning_groups(EVEN), pruning_groups(range(10)))
    (tmp_path / "mask.json").write_text(json.dumps([[float(e in EVEN) for e in range(16)]] * 2))
    (tmp_path / "ordered.jsonl").write_text("".join(f'{{"{row}": {[*ODD, *EVEN]}}}\n' for row in (1, 2)))
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(plan, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_show(folder):
    said = run("show", "even.json").output
    assert "even.json: toy keeps 16 of 32 experts (50.0" in said and "seed: 1" in said
    assert re.search(r"1 +0, 2, 4, 6, 8, 10, 12, 14", said)
    assert re.search(r"1 +16 +8 +8", run("show", "merging.json").output)
    assert "0+8, 1+9" in run("show", "merging.json").output
    assert re.search(r"2 +0-9", run("show", "uneven.json").output)
    told = json.loads(run("show", "even.json", "--json").output)
    assert (told["kept"], told["experts"], told["merges"]) == (16, 32, False)
    assert told["layers"][0]["groups"] == [[expert] for expert in EVEN]


def test_compare(folder):
    told = json.loads(run("compare", "even.json", "odd.json", "--json").output)
    assert [layer["overlap"] for layer in told["layers"]] == [0.0, 1.0]
    # 8 of 16 in one layer and 8 of 8 in the other: both keep 8 of 24.
    assert (told["both"], told["overlap"], told["mean_overlap"], told["same"]) == (8, 8 / 24, 0.5, False)
    said = run("compare", "even.json", "odd.json").output
    assert re.search(r"all +16 +16 +8 +33\.3", said) and "mean overlap 50.0" in said
    assert "the same plan" in run("compare", "even.json", "even.json").output


def test_check(folder, model):
    said = run("check", "even.json", model).output
    assert f"fits {model}" in " ".join(said.split()) and "rewrite.layout: uniform" in said
    told = json.loads(run("check", "even.json", model, "--json").output)
    assert told["experts"] == [32, 16] and told["bytes"][1] < told["bytes"][0]
    assert {engine["engine"]: engine["verdict"] for engine in told["engines"]}["transformers"] == "loads"
    uneven = json.loads(run("check", "uneven.json", model, "--json").output)
    assert uneven["fits"] and uneven["rewrite"]["layout"] == "per_layer"


def test_check_of_a_plan_that_does_not_fit(folder, model):
    write(folder, "other.json", pruning_groups(range(4)), layout=MoELayout((1,), (8,), 4))
    said = run("check", "other.json", model, code=1).output
    assert "does not fit" in said and "1 layers of 8 experts" in " ".join(said.split())
    told = json.loads(run("check", "other.json", model, "--json", code=1).output)
    assert told["fits"] is False and "take a plan for this model" in told["reason"]


def test_import_and_export(folder, model):
    assert "keeps 16 of 32 experts" in run("import", "mask.json", "new.json", "--checkpoint", model).output
    assert json.loads(run("compare", "new.json", "even.json", "--json").output)["same"]
    run("import", "ordered.jsonl", "ordered.json", "--checkpoint", model, "--keep", "8")
    assert json.loads((folder / "ordered.json").read_text())["layers"][0]["groups"] == ODD
    run("export", "even.json", "again.json", "--format", "easy_ep")
    assert json.loads((folder / "again.json").read_text()) == json.loads((folder / "mask.json").read_text())
    assert json.loads(run("export", "even.json", "--format", "c_prune").output) == {"1": ODD, "2": ODD}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "mask.json"], "mask.json does not say which model it is for"),
        (["show", "ordered.jsonl", "--checkpoint", "MODEL"], "does not say how many stay"),
        (["import", "mask.json", "even.json", "--checkpoint", "MODEL"], "even.json exists already"),
        (["export", "merging.json", "--format", "easy_ep"], "merges experts"),
        (["export", "even.json", "--format", "vllm_ascend"], "no scores to order"),
        (["check", "even.json", "nowhere"], "nowhere"),
    ],
)
def test_refused_in_one_sentence(folder, model, arguments, message):
    result = run(*[model if argument == "MODEL" else argument for argument in arguments], code=1)
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize("arguments", [["show"], ["show", "a", "--what"], ["export", "even.json"], ["nothing"]])
def test_wrong_usage(folder, arguments):
    run(*arguments, code=2)


@pytest.mark.parametrize("name", ["show", "compare", "check", "import", "export"])
def test_help_has_examples_and_exit_codes(name):
    said = run(name, "--help").output
    assert f"kedro plan {name} " in said and "0 fine, 1 refused" in said


def test_a_domain_is_its_newest_plan(project):
    from moe_compress.cli import cli

    assert "plan" in cli.commands
    assert "no domain has a plan yet" in run("show", "medical", code=1).stderr
    place = project.folder / "data/05_model_input/plans/medical/abc"
    place.mkdir(parents=True)
    write(place, "plan.json", pruning_groups(EVEN), pruning_groups(EVEN), method="newest")
    assert json.loads(run("show", "medical", "--json").output)["method"] == "newest"
    assert "domains with a plan: medical" in run("show", "dental", code=1).stderr
