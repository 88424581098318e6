"""A folder is what its files say, or it is refused in one sentence."""

import json
import time

import pytest
from safetensors.numpy import load_file, save_file
from tests.checkpoint.conftest import make_tensors, save

from moe_compress.checkpoint.header import write_header
from moe_compress.checkpoint.index import list_weight_files, read_config, read_index, read_tensors
from moe_compress.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def refuse(folder, words):
    with pytest.raises(CheckpointError, match=words):
        read_index(folder)


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_tensor_is_found(tmp_path, shards):
    index = read_index(save(tmp_path / "c", shards))
    assert index.shapes == {name: values.shape for name, values in make_tensors().items()}
    assert index.config["text"] == {"count": 4, "width": 3}
    assert len(list_weight_files(tmp_path / "c")) == shards
    places = [(info.file, info.start) for info in index.tensors.values()]
    assert places == sorted(places)


def test_a_large_checkpoint_is_read_quickly(tmp_path):
    names = [f"model.layers.{n // 1500}.mlp.experts.{n % 1500}.weight" for n in range(91_000)]
    (tmp_path / "model.safetensors").write_bytes(write_header((n, "U8", (1,), 1) for n in names) + bytes(91_000))
    start = time.process_time()
    assert len(read_tensors(tmp_path)) == 91_000
    assert time.process_time() - start < 5


def test_no_config(source):
    (source / "config.json").unlink()
    refuse(source, r"config\.json is missing")


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "not a JSON object"), ("{", "not valid JSON"), ('{"a":1,"a":2}', "twice")]
)
def test_a_broken_config(source, text, words):
    (source / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_config(source)


def test_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    refuse(tmp_path, r"neither model\.safetensors nor")


def test_a_missing_shard(source):
    (source / "model-00002-of-00002.safetensors").unlink()
    refuse(source, r"model-00002-of-00002\.safetensors is missing")


def test_a_shard_that_is_a_folder(source):
    (source / "model-00002-of-00002.safetensors").unlink()
    (source / "model-00002-of-00002.safetensors").mkdir()
    refuse(source, "is missing")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_a_map(source, index):
    (source / INDEX).write_text(json.dumps(index))
    refuse(source, "has no 'weight_map'")


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "a/../x.safetensors", "a\\x.safetensors"]
)
def test_an_index_that_leaves_the_folder(source, file):
    (source.parent / "x.safetensors").write_bytes(b"secret")
    change_index(source, lambda places: places.update({"embed.weight": file}))
    refuse(source, "not a plain name inside the folder")


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "x" * 300])
def test_an_index_that_names_what_is_no_file(source, name):
    change_index(source, lambda places: places.update({"embed.weight": f"{name}.safetensors"}))
    refuse(source, "not a plain name inside the folder")


def test_a_tensor_in_two_shards(source):
    first, second = sorted(source.glob("*.safetensors"))
    tensors = load_file(first)
    save_file(tensors | load_file(second), second)
    refuse(source, "disagree about .* tensors, first")


def test_a_config_nested_deep(source):
    (source / "config.json").write_text('{"a": ' + "[" * 40 + "]" * 40 + "}")
    refuse(source, "nests values more than 32 levels deep")


def test_half_a_character_in_the_config(source):
    (source / "config.json").write_text(r'{"name": "\ud800"}')
    refuse(source, "is not valid JSON")


@pytest.mark.parametrize("file", [7, None, "config.json"])
def test_an_index_entry_that_is_no_safetensors_file(source, file):
    change_index(source, lambda places: places.update({"embed.weight": file}))
    refuse(source, "puts tensor 'embed.weight' in .*no safetensors file")


def test_a_tensor_the_index_promises_and_no_file_has(source):
    change_index(source, lambda places: places.update({"ghost": places["embed.weight"]}))
    refuse(source, "disagree about 1 tensors, first 'ghost'")


def test_a_tensor_the_index_does_not_know(source):
    change_index(source, lambda places: places.pop("embed.weight"))
    refuse(source, "disagree about 1 tensors, first 'embed.weight'")
