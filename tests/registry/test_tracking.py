"""What a run leaves behind: flat parameters, checked artifacts, our own digests, no stray runs."""

import subprocess
from dataclasses import dataclass

import mlflow
import pytest
from pydantic import BaseModel

from moe_compress import __version__
from moe_compress.errors import RegistryError
from moe_compress.registry.client import mlflow_client, without_credentials
from moe_compress.registry.tracking import (
    flatten_parameters,
    git_commit,
    log_children,
    log_dataset_digest,
    log_run,
    peak_memory,
    read_artifact,
    run_provenance,
)


class Budget(BaseModel):
    experts_per_layer: int = 8


@dataclass(frozen=True)
class Gate:
    name: str
    budget: Budget


def test_parameters_flatten_through_models_dataclasses_and_mappings():
    nested = {
        "select": {"method": "easy_ep", "budget": Budget()},
        "gate": Gate("size", Budget()),
        "empty": {},
        "n": [1],
    }
    assert flatten_parameters(nested) == {
        "select.method": "easy_ep",
        "select.budget.experts_per_layer": 8,
        "gate.name": "size",
        "gate.budget.experts_per_layer": 8,
        "empty": {},
        "n": [1],
    }


def test_a_run_holds_what_was_logged(store):
    report, folder = store / "report.html", store / "figures"
    report.write_text("<html></html>")
    folder.mkdir()
    (folder / "kept.png").write_bytes(b"png")
    digest = "0123456789abcdef" * 4
    with mlflow.start_run() as run:
        run_id = log_run(
            {"select": {"method": "reap"}}, {"share_kept.medical": 0.9}, {"t": "x" * 6000}, [report, folder]
        )
        log_dataset_digest("medical.demonstrations", digest, "data/demonstrations.jsonl", "calibration")
        log_dataset_digest("medical.heldout", digest, "s3://bucket/heldout.jsonl", "evaluation")
    assert run_id == run.info.run_id
    logged = mlflow.MlflowClient().get_run(run_id)
    assert logged.data.params == {"select.method": "reap"}
    assert logged.data.metrics == {"share_kept.medical": 0.9}
    assert len(logged.data.tags["t"]) == 5000
    artifacts = mlflow.artifacts.list_artifacts(run_id=run_id)
    assert {item.path for item in artifacts} == {"report.html", "figures"}
    first, second = sorted(logged.inputs.dataset_inputs, key=lambda item: item.dataset.name)
    assert (first.dataset.digest, first.dataset.source) == (digest[:36], '{"uri": "data/demonstrations.jsonl"}')
    assert {tag.key: tag.value for tag in first.tags} == {"mlflow.data.context": "calibration", "sha256": digest}
    assert second.dataset.source_type == "s3"


def test_without_an_active_run_nothing_is_logged_and_none_is_started(store):
    with pytest.raises(RegistryError, match="no MLflow run is active"):
        log_run({}, {"x": 1.0}, {})
    with pytest.raises(RegistryError, match="no MLflow run is active"):
        log_dataset_digest("d", "0" * 64, "d.jsonl", "calibration")
    assert mlflow.active_run() is None
    assert len(mlflow.search_runs(output_format="list")) == 0


def test_a_bad_artifact_stops_before_anything_is_logged(store):
    weights = store / "candidate" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    with mlflow.start_run() as run:
        with pytest.raises(RegistryError, match="does not exist; write it"):
            log_run({}, {"x": 1.0}, {}, [store / "absent.html"])
        with pytest.raises(RegistryError, match=r"holds the weights model\.safetensors"):
            log_run({}, {"x": 1.0}, {}, [weights.parent])
    assert mlflow.MlflowClient().get_run(run.info.run_id).data.metrics == {}


def test_a_parameter_cannot_change_within_a_run(store):
    with mlflow.start_run():
        log_run({"a": {"b": True}}, {}, {})
        log_run({"a": {"b": "True"}}, {}, {})  # the same text
        with pytest.raises(RegistryError, match="Changing param values is not allowed"):
            log_run({"a": {"b": False}}, {}, {})


def test_a_store_that_cannot_be_reached_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: "http://ann:secret@127.0.0.1:1")
    with pytest.raises(RegistryError) as caught, mlflow_client("find 'x'"):
        client = mlflow.MlflowClient("http://127.0.0.1:1", registry_uri="http://ann:secret@127.0.0.1:1")
        client.search_registered_models()
    assert "could not find 'x' in http://127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert without_credentials("postgresql://ann:p:w@db/x, file:///a@b") == "postgresql://db/x, file:///a@b"


def test_the_commit_of_a_project(tmp_path, monkeypatch):
    assert git_commit(tmp_path / "absent") == "none"
    monkeypatch.setenv("MOE_COMPRESS_COMMIT", "4c1f0e9")
    assert git_commit(tmp_path / "absent") == "4c1f0e9"
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "new").write_text("untracked files change nothing")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == f"{commit}+changes"
    assert run_provenance(tmp_path) == {"package_version": __version__, "git_commit": f"{commit}+changes"}


def test_nested_runs_belong_to_the_active_one(store):
    children = {
        "reap 0.5": ({"method": "reap"}, {"accuracy": 0.5}, {"passes": "true"}),
        "random 0.5": ({"method": "random"}, {"accuracy": 0.2}, {"passes": "false"}),
    }
    with mlflow.start_run() as parent:
        log_children(children)
        assert mlflow.active_run().info.run_id == parent.info.run_id
    runs = mlflow.search_runs(search_all_experiments=True).set_index("tags.mlflow.runName")
    assert runs.loc["reap 0.5", "metrics.accuracy"] == 0.5 and runs.loc["random 0.5", "tags.passes"] == "false"
    parents = runs.loc[["reap 0.5", "random 0.5"], "tags.mlflow.parentRunId"]
    assert set(parents) == {parent.info.run_id}
    log_children(children)  # outside a run nothing is logged
    assert len(mlflow.search_runs(search_all_experiments=True)) == 3


def test_the_most_memory_held_is_told_in_bytes_and_never_falls():
    before = peak_memory()["peak_memory_bytes"]
    held = bytearray(int(before))  # as much again, every page of it touched
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory()["peak_memory_bytes"] > 1.5 * before
    del held
    assert peak_memory()["peak_memory_bytes"] > 1.5 * before


def test_an_artifact_is_read_or_gone(store):
    with mlflow.start_run() as run:
        mlflow.log_text("{}", "a1b2/plan.json")
    assert read_artifact(run.info.run_id, "a1b2/plan.json") == "{}"
    assert read_artifact(run.info.run_id, "a1b2/report.html") is None
    assert read_artifact(run.info.run_id, "c3d4/plan.json") is None
    assert read_artifact("0" * 32, "a1b2/plan.json") is None
