"""A checkpoint as an input: a folder, or a snapshot in the hub's cache."""

from __future__ import annotations

import json
import struct

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from kedro.io import DatasetError

from moe_compress.datasets import CheckpointDataset
from moe_compress.datasets.checkpoint import UNWANTED, WANTED, refer_to
from moe_compress.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_checkpoint(folder, value=1.0):
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + struct.pack("<f", value)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "toy"}')


def dataset(tmp_path, **hub):
    return CheckpointDataset(filepath=str(tmp_path / "model"), path=str(tmp_path / "digests"), **hub)


def test_a_folder_is_known_by_its_content(tmp_path):
    write_checkpoint(tmp_path / "model")
    first = dataset(tmp_path).load()
    assert (first.path, first.name, first.revision) == (tmp_path / "model", "model", "local")
    assert dataset(tmp_path).load().identity == first.identity
    write_checkpoint(tmp_path / "model", value=2.0)
    assert dataset(tmp_path).load().weights_digest != first.weights_digest


def test_a_missing_shard_is_named(tmp_path):
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "model-1.safetensors")
    index = {"weight_map": {"weight": "model-1.safetensors", "other": "model-2.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-2.safetensors is missing; fetch the checkpoint again"):
        refer_to(tmp_path / "model", None)


def test_a_given_folder_stands_for_whatever_else_is_configured(tmp_path):
    write_checkpoint(tmp_path / "mine")
    found = dataset(tmp_path, given=str(tmp_path / "mine"), hub_id="org/model", revision=COMMIT).load()
    assert (found.path, found.name, found.revision) == (tmp_path / "mine", "mine", "local")


def test_a_weight_file_that_is_no_part_of_the_checkpoint_is_named_once(tmp_path, caplog):
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "extra.safetensors").write_bytes(b"")
    loaded = dataset(tmp_path)
    loaded.load()
    loaded.load()
    (warning,) = [record.message for record in caplog.records if record.name.startswith("moe_compress")]
    assert warning.endswith("no part of this checkpoint, left out: extra.safetensors")
    caplog.clear()
    (tmp_path / "model" / "extra.safetensors").unlink()
    dataset(tmp_path).load()
    assert not [record for record in caplog.records if record.name.startswith("moe_compress")]


def test_a_changed_config_is_another_model_with_the_same_weights(tmp_path):
    write_checkpoint(tmp_path / "model")
    first = dataset(tmp_path).load()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "other"}')
    second = dataset(tmp_path).load()
    assert second.weights_digest == first.weights_digest and second.identity != first.identity


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache as the hub's client leaves it: blobs, and a snapshot of links to them."""
    cache = tmp_path / "hub"
    repository = cache / "models--team--toy"
    snapshot = repository / "snapshots" / COMMIT
    write_checkpoint(repository / "blobs")
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_hub_model_is_known_by_its_id_and_commit(tmp_path, hub_cache):
    found = dataset(tmp_path, hub_id="team/toy", revision="main").load()
    assert (found.name, found.revision) == ("team/toy", COMMIT)
    assert (found.path / "model.safetensors").is_file()


def test_weights_that_a_repository_has_twice_are_fetched_once():
    wanted = [
        "additional_chat_templates/tool_use.jinja",
        "config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "modeling_deepseek.py",
    ]
    wanted += ["tokenizer.json"]
    copies = ["consolidated.safetensors", "metal/model.bin", "original/model.safetensors", "original/config.json"]
    names = [*wanted, *copies, "pytorch_model.bin"]
    assert list(filter_repo_objects(names, allow_patterns=WANTED, ignore_patterns=UNWANTED)) == wanted


def test_a_model_the_hub_does_not_give(tmp_path, hub_cache):
    with pytest.raises(DatasetError, match="the hub did not give 'team/other' at revision main"):
        dataset(tmp_path, hub_id="team/other").load()


def test_an_input_is_never_written(tmp_path):
    with pytest.raises(DatasetError, match="is an input"):
        dataset(tmp_path).save("a checkpoint")
