"""Loading a layer takes little more memory than the layer, however its experts are stored."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_families
from tests.collection.conftest import CPU, read_files
from torch.profiler import ProfilerActivity, profile

from moe_compress.collection import staging
from moe_compress.collection.resident import load_resident
from moe_compress.collection.streamed import StreamedModel

EXPERTS = 32
WIDE = {"hidden_size": 128, "moe_intermediate_size": 96}
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers")


def most_allocated(function):
    """Return the most bytes that torch held at once during a call, beside what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = function()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del kept
    return most


def quantise(folder, suffix, store, settings):
    """Replace each tensor of a name by what `store` makes of it: name's ending -> tensor."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith(suffix) and tensors[name].dim() > 1]:
            tensors |= {name + ending: value for ending, value in store(tensors.pop(name)).items()}
        save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    for index in folder.glob("*.index.json"):
        index.unlink()


def to_fp8(value):
    grid = [-(-size // 32) for size in value.shape]
    return {"": value.to(torch.float8_e4m3fn), "_scale_inv": torch.ones(grid)}


def to_mxfp4(value):
    experts, columns, rows = value.shape
    blocks = torch.zeros(experts, rows, columns // 32, 16, dtype=torch.uint8)
    return {"_blocks": blocks, "_scales": torch.full(blocks.shape[:3], 127, dtype=torch.uint8)}


@pytest.mark.parametrize("stored", ["plain", "converted", "quantised"])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_a_layer_is_loaded_in_its_own_size_and_a_tenth(tmp_path, monkeypatch, family, stored):
    monkeypatch.setattr(staging, "_PIECE", 1 << 16)  # as small beside these layers as it is beside real ones
    wide = {"hidden_size": 128, "intermediate_size": 128} if family == "gpt_oss" else WIDE
    model = tiny_families.build(family, EXPERTS, **wide).bfloat16()
    model.save_pretrained(tmp_path)
    if stored == "quantised" and family == "gpt_oss":
        quantise(tmp_path, ("gate_up_proj", "down_proj"), to_mxfp4, {"quant_method": "mxfp4"})
    elif stored == "quantised":
        quantise(tmp_path, "_proj.weight", to_fp8, FP8)
    dtype = torch.float32 if stored == "converted" else torch.bfloat16
    streamed = StreamedModel(read_files(tmp_path), dtype, CPU)
    largest = streamed.layer_bytes()[2]
    most = most_allocated(lambda: streamed._load_layer(2))
    assert largest <= most <= 1.1 * largest


def test_a_model_without_weights_is_built_without_memory_for_them(tmp_path):
    model = tiny_families.build("qwen3_moe", EXPERTS, **WIDE)
    model.save_pretrained(tmp_path)
    size = sum(value.nbytes for value in model.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        StreamedModel(read_files(tmp_path), torch.float32, CPU)
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = sum(event.nbytes() for event in changes if event.nbytes() > 0 and event.device_type().name == "CPU")
    assert taken < 0.02 * size


def test_a_resident_model_is_made_on_its_device_and_not_in_host_memory_first(tmp_path):
    model = tiny_families.build("qwen3_moe", EXPERTS, **WIDE)
    model.save_pretrained(tmp_path)
    device = torch.device("meta")  # one that takes no host memory, as a GPU takes none
    most = most_allocated(lambda: load_resident(tmp_path, device, torch.float32))
    assert most <= 1.1 * (tmp_path / "model.safetensors").stat().st_size  # which is mapped
    assert all(value.device == device for value in load_resident(tmp_path, device, torch.float32).parameters())


def test_layers_that_come_and_go_leave_the_model_as_it_was(checkpoint):
    streamed = StreamedModel(read_files(checkpoint("deepseek_v3")), torch.float32, CPU)
    empty = {**dict(streamed.model.named_parameters()), **dict(streamed.model.named_buffers())}
    for index in streamed.layers(0):
        assert not any(value.is_meta for value in streamed.replay._layers[index].parameters())
    now = {**dict(streamed.model.named_parameters()), **dict(streamed.model.named_buffers())}
    assert all(now[name] is value for name, value in empty.items())
