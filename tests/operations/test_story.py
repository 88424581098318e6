"""A model's life, as the commands are typed: made, promoted, used, made anew, refused, rolled back, damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from tests.operations.conftest import train_on
from transformers import AutoModelForCausalLM

from moe_compress.registry.versions import list_aliases, list_versions, resolve

STRICT = ("--params", "gates.size_reduced.at_most=0.1")
NAME = "moe-medical"


def aliases():
    found = list_aliases(NAME)
    return found.get("candidate"), found.get("champion"), found.get("previous")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def check_first_release(operator):
    said = operator.type("check", "medical", code=10)
    assert "nothing is registered yet" in said and "custom resolver" not in said
    assert "Registered as moe-medical version 1" in operator.type("run", "medical")
    checked = operator.ask("check", "medical")
    assert (checked["needed"], checked["reasons"], checked["aliases"]) == (False, [], ["candidate"])
    assert "nothing to do" in operator.type("run", "medical")
    assert operator.ask("promote", "medical", "--by", "ann", "--why", "reviewed")["moved"] is True
    assert operator.ask("promote", "medical", "--by", "ben")["moved"] is False
    folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion")
    assert AutoModelForCausalLM.from_pretrained(folder).config.n_routed_experts == 8
    card = (Path(folder) / "README.md").read_text()
    assert "models:/moe-medical/1" in card and "@candidate" not in card
    said = operator.type("show", "medical")
    assert "reviewed" in said and "there is no champion yet: passed" in said


def check_twice_is_once(operator):
    operator.type("run", "medical", "--force")
    assert [version.version for version in list_versions(NAME)] == ["1"]


def check_new_base(operator):
    train_on(operator.project.folder / "data/01_raw/model")
    checked = operator.ask("check", "medical", code=10)
    assert [reason["what"] for reason in checked["reasons"]] == ["base weights"]
    assert "size_reduced" in operator.type("run", "medical", *STRICT, code=1)
    assert aliases() == ("1", "1", None) and len(list_versions(NAME)) == 1
    assert operator.ask("promote", "medical")["moved"] is False
    operator.type("run", "medical")
    assert aliases() == ("2", "1", None)
    operator.type("promote", "medical")
    assert aliases() == ("2", "2", "1")


def check_difference(operator):
    compared = operator.ask("diff", "medical", "previous", "champion", "--html", "comparison.html")
    page = (operator.project.folder / "comparison.html").read_text()
    assert "moe-medical version 1 and moe-medical version 2" in page and "candidate.accuracy.medical" in page
    assert compared["gates"]["size_reduced"][1].endswith("passed")
    assert set(compared["lineage"]) >= {"base model.weights digest", "checkpoint.weights digest"}
    assert compared["parameters"] == {} and not compared["same_run_key"]
    assert 0 < compared["plan_overlap"] <= 1
    assert compared["measured"]["candidate.accuracy.medical"][1] >= 0


def check_rollback(operator):
    assert operator.ask("rollback", "medical", "--why", "loops")["version"] == "1"
    assert aliases() == ("2", "1", None)
    assert "was rolled back" in operator.type("promote", "medical", code=1)
    assert "no earlier champion" in operator.type("rollback", "medical", code=1)
    assert "rolled back" in operator.ask("check", "medical")["notes"][0]
    assert operator.ask("promote", "medical", "--version", "2")["moved"] is True


def check_damage(operator):
    folder = resolve(NAME, "champion").folder
    assert operator.ask("verify", "medical")["intact"] is True
    for name in ("model.safetensors", "config.json", "tokenizer.json", "checksums.sha256"):
        kept = (folder / name).read_bytes()
        flip_a_byte(folder / name)
        assert name in operator.ask("verify", "medical", code=1)["damaged"]
        assert f"- {name}:" in operator.type("verify", "medical", code=1)
        (folder / name).write_bytes(kept)
    operator.type("rollback", "medical")
    flip_a_byte(folder / "model.safetensors")
    said = operator.type("promote", "medical", "--version", "2", code=1)
    assert "is not what was registered: model.safetensors" in said and aliases()[1] == "1"


@pytest.mark.usefixtures("one_figure")
def test_the_story(operator, monkeypatch):
    planted = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "DATABASE_URL")
    for name in planted:
        monkeypatch.setenv(name, f"planted-{name}")
    for chapter in (
        check_first_release,
        check_twice_is_once,
        check_new_base,
        check_difference,
        check_rollback,
        check_damage,
    ):
        chapter(operator)
    check_lineage(operator)
    check_no_secrets(operator.project.folder)


def check_lineage(operator):
    """Everything a version must be traced to is among its tags, and none of it is empty."""
    (version,) = [version for version in list_versions(NAME) if version.version == "2"]
    names = """base_id base_revision base_weights_digest demonstrations_digest benchmark_digest plan_digest method
    budget gates gates_passed package_version git_commit run_key candidate_weights_digest checksums_digest"""
    assert all(version.tags[name] for name in names.split())
    assert json.loads(version.tags["gates"])["size_reduced"]["passed"] is True
    described = operator.ask("show", "medical", "--version", "2")
    assert described["base model"]["weights digest"] == version.tags["base_weights_digest"]


def check_no_secrets(folder):
    """No file that a run leaves holds what the environment was told in secret."""
    found = [path for path in folder.rglob("*") if path.is_file() and b"planted-" in path.read_bytes()]
    assert found == []
    assert any(re.search("mlflow.db$", str(path)) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "medicl"], "did you mean 'medical'"),
        (["check", "medical", "--params", "select.metod=reap"], "select.metod: is not a parameter"),
        (["check", "medical", "--base", "nowhere"], "nowhere"),
        (["check", "medical", "--base", "models:/base@champion"], "has no alias 'champion'"),
        (["check", "medical", "--base", "s3://bucket/base"], "is no place of a base model"),
        (["promote", "medical"], "has no alias 'candidate'"),
        (["rollback", "medical"], "no earlier champion"),
        (["show", "medical"], "has no version"),
        (["show", "moe-other", "--version", "3"], "has no version 3"),
        (["diff", "medical", "1", "candidate"], "has no version 1"),
        (["verify", "medical"], "has no version"),
    ],
)
def test_refusals_are_one_sentence(operator, words, message):
    said = operator.type(*words, code=1)
    assert message in said and said.count("Error: ") == 1


@pytest.mark.parametrize("uri", [None, "http://127.0.0.1:1"])
@pytest.mark.parametrize(
    "words", [["compress", "check", "medical"], ["compress", "show", "medical"], ["tracking", "sync"]]
)
def test_an_environment_that_is_not_there_is_named(operator, words, uri, monkeypatch):
    from moe_compress.cli import cli

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri) if uri else monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (group, *rest) = words
    done = CliRunner().invoke(cli.commands[group], [*rest, "--env=lokal"])
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: no environment 'lokal' in \S+/conf; there are base, .*local.*\n", done.output)


@pytest.mark.parametrize("words", [["check"], ["diff", "medical", "1"], ["show", "medical", "--what"], ["nothing"]])
def test_wrong_usage(operator, words):
    operator.type(*words, code=2)


@pytest.mark.parametrize("name", ["check", "run", "promote", "rollback", "show", "diff", "verify"])
def test_help_has_examples_and_exit_codes(operator, name):
    said = operator.type(name, "--help")
    assert f"kedro compress {name} medical" in said and "Exit codes: 0 " in said
