"""Lineage is told of every version there can be, also where a tag was too long to be kept whole."""

from __future__ import annotations

import json

import mlflow
import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from moe_compress.operations.lineage import compare_versions, describe_version
from moe_compress.registry.promotion import PROMOTED, promote
from moe_compress.registry.versions import MAX_TAG_LENGTH, find_version, register_version

GATE = {"at_least": 0.8, "observed": 0.9, "passed": True, "severity": "error", "basis": ""}


@pytest.fixture
def versions(store):
    """One version with a gate, and one with more than a tag can hold."""
    for key, count in (("few", 1), ("many", 60)):
        gates = json.dumps({f"accuracy_of_domain_{number:02d}": GATE for number in range(count)})
        assert (len(gates) > MAX_TAG_LENGTH) == (key == "many")
        register_version(
            "moe-medical", f"s3://bucket/{key}", {"run_key": key, "gates_passed": "true", "gates": gates}
        )
    return find_version("moe-medical", "1"), find_version("moe-medical", "2")


def test_more_gates_than_a_tag_holds_are_looked_up_elsewhere(versions):
    few, many = versions
    assert describe_version(few)["gates"]["accuracy_of_domain_00"] == "0.9, at least 0.8: passed"
    told = describe_version(many)["gates"]
    assert told == {"passed": "true", "each": "too long for a tag; see report.html of the MLflow run"}
    assert compare_versions(few, many)["gates"]["each"] == [None, told["each"]]


def test_a_long_reason_is_cut_and_still_a_record(versions):
    few, _ = versions
    promote(few, "ann", 'said "so"\n' * 600)
    text = find_version("moe-medical", "1").tags[PROMOTED]
    assert len(text) <= MAX_TAG_LENGTH and json.loads(text)["by"] == "ann"
    told = describe_version(find_version("moe-medical", "1"))["moved"][PROMOTED]
    assert ' by ann: said "so"' in told and "(6000 characters" in told


@pytest.mark.parametrize("text", ['{"by": "ann", "why": "becau... (6', "true"])
def test_a_record_that_was_cut_or_set_by_hand_is_shown_as_it_is(versions, text):
    mlflow.MlflowClient().set_model_version_tag("moe-medical", "1", PROMOTED, text)
    assert describe_version(find_version("moe-medical", "1"))["moved"] == {PROMOTED: text}


def test_a_plan_that_cannot_be_read_is_not_said_to_be_missing(versions, checkpoint, monkeypatch):
    few, _ = versions
    with mlflow.start_run():
        tracked = register_version("moe-medical", checkpoint, {"run_key": "tracked"})
    missing = compare_versions(tracked, few)["plan_overlap_unknown"]
    assert missing == "the MLflow run of models:/moe-medical/3 keeps no plan.json; run its pipeline again to log it"

    def refuse(*_):
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(LocalArtifactRepository, "list_artifacts", refuse)
    refused = compare_versions(tracked, few)["plan_overlap_unknown"]
    assert f"read tracked/plan.json of run {tracked.run_id}: Unable to locate credentials" in refused
