"""A tracking server takes local files only among a run's artifacts: hard links there, or a plain refusal."""

import os
import shutil

import mlflow
import pytest

from moe_compress.errors import RegistryError
from moe_compress.registry.versions import register_version, resolve

TAGS = {"run_key": "a1b2"}


def test_within_a_run_the_folder_is_linked_not_copied(server, checkpoint):
    with mlflow.start_run():
        first = register_version("moe-linked", checkpoint, TAGS)
        again = register_version("moe-linked", checkpoint, TAGS)
    assert (first.created, again.created, again.version) == (True, False, "1")
    weights = next(checkpoint.glob("*.safetensors"))
    linked = next(server.rglob("*.safetensors"))
    assert linked.samefile(weights)
    assert mlflow.pyfunc.load_model("models:/moe-linked@candidate").predict(["Answer :"])


def test_other_weights_of_the_same_key_are_given_an_address_of_their_own(server, checkpoint, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    weights = next(other.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with mlflow.start_run():
        for folder, digest in ((checkpoint, "c3d4" * 16), (other, "e5f6" * 16)):
            register_version("moe-twice", folder, {**TAGS, "candidate_weights_digest": digest})
    registered = next(resolve("moe-twice", "candidate").folder.glob("*.safetensors"))
    assert registered.samefile(weights)


def test_outside_a_run_the_way_out_is_told(server, checkpoint):
    with pytest.raises(RegistryError, match=r"tracking server refuses .*register it within a run"):
        register_version("moe-refused", checkpoint, TAGS)
    with pytest.raises(RegistryError, match="no alias 'candidate'"):
        resolve("moe-refused", "candidate")


def test_an_artifact_root_on_another_disk_is_refused_and_left_clean(server, checkpoint, monkeypatch):
    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with mlflow.start_run() as run, pytest.raises(RegistryError, match=r"hard-linked.*on one file system"):
        register_version("moe-elsewhere", checkpoint, TAGS, run_id=run.info.run_id)
    assert list(server.rglob("*moe-elsewhere*")) == []
