"""Layer by layer is the plain forward pass, to the bit, and needs memory for two layers."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from tests import tiny_families
from tests.collection.conftest import (
    CPU,
    assert_same_bits,
    layout_of,
    load_plain,
    make_domains,
    read_files,
    run_resident,
    run_streamed,
)

from moe_compress.collection.ranges import RangeReader
from moe_compress.collection.replay import Replay, find_stack
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.streamed import StreamedModel
from moe_compress.errors import CheckpointError, UnsupportedModelError

FAMILIES = (
    "afmoe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",  # hyper-connections: several residual streams
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "glm4_moe",
    "glm_moe_dsa",  # a layer tells the next which positions it chose
    "gpt_oss",
    "granitemoe",
    "hunyuan_v1_moe",
    "jamba",
    "kimi_linear",
    "lfm2_moe",
    "minimax",
    "minimax_m2",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl_moe",  # the language model is nested
    "solar_open",
)
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_is_resident_to_the_bit(checkpoint, family, dtype):
    folder, domains = checkpoint(family), make_domains()
    experts = "eager" if dtype == torch.bfloat16 else "grouped_mm"  # the latter wants wider bfloat16 rows
    model = load_plain(family, folder, dtype, experts)
    expected = run_resident(model, layout_of(model), domains)
    files = read_files(folder)
    found, streamed = run_streamed(files, layout_of(model), domains, dtype, experts)
    assert_same_bits(found, expected)
    assert streamed.reader.num_bytes <= sum(info.num_bytes for info in files.tensors.values())


def test_weights_are_gone_once_a_layer_is_done(checkpoint):
    streamed = StreamedModel(read_files(checkpoint("qwen3_moe")), torch.float32, CPU)
    layers = [f"model.layers.{index}." for index in range(3)]
    for index in streamed.layers(0):
        held = {name for name, value in streamed.model.named_parameters() if not value.is_meta}
        assert held and all(name.startswith(layers[index]) for name in held)
    assert all(value.is_meta for value in streamed.model.parameters())


def test_a_layers_memory_is_overwritten_only_after_the_device_is_done_with_it(checkpoint, monkeypatch):
    streamed, told = StreamedModel(read_files(checkpoint("qwen3_moe")), torch.float32, CPU), []
    recycle = streamed.loader.recycle

    def watch(values):
        told.append("recycled" if values else "nothing to recycle")
        recycle(values)

    monkeypatch.setattr(streamed.loader, "recycle", watch)
    monkeypatch.setattr(streamed, "_wait_for_computing", lambda: told.append("computed"))
    for index in streamed.layers(0):
        told.append(f"layer {index}")
    assert told == [
        *("nothing to recycle", "layer 0", "computed"),
        *("recycled", "layer 1", "computed"),
        *("layer 2", "computed"),
    ]


def test_a_layer_is_the_models_own_layer(checkpoint):
    model = load_plain("glm_moe_dsa", checkpoint("glm_moe_dsa"), torch.float32)
    batch = make_domains()["one"][0]
    seen = []
    for layer in find_stack(model)[1]:
        layer.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        model.base_model(batch.input_ids_BS, attention_mask=batch.mask_BS, use_cache=False)
    plain, seen[:] = list(seen), []
    replay, before = Replay(model), None
    with torch.inference_mode():
        for index, expected in enumerate(plain):
            before = replay.run(index, batch, before)
            for ours, theirs in zip(before.value, expected, strict=True):
                assert torch.equal(ours, theirs)


def test_keys_and_values_that_layers_share_are_handed_on(tmp_path):
    kinds = ["full_attention", "sliding_attention", "full_attention"] * 2
    changes = {"num_kv_shared_layers": 3, "num_hidden_layers": 6, "layer_types": kinds}
    changes |= {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 64}
    tiny_families.save("gemma4_text", tmp_path / "model", **changes)
    files, domains = read_files(tmp_path / "model"), make_domains()
    model = load_plain("gemma4_text", files.folder, torch.float32)
    expected = run_resident(model, layout_of(model), domains)
    for keep in (True, False):
        point = ResumePoint(tmp_path / str(keep), "a" * 64, keep)
        found, _ = run_streamed(files, layout_of(model), domains, point=point)
        assert_same_bits(found, expected)


def test_compressed_keys_and_values_that_layers_share_are_handed_on(tmp_path):
    kinds = {"mlp_layer_types": ["dense", *["sparse"] * 5], "indexer_types": ["full", "full", "shared"] * 2}
    changes = {"num_hidden_layers": 6, "kv_source_layers": [0, 1, 1, 3, 3, 1]}
    tiny_families.save("mistral_large4", tmp_path / "model", **kinds, **changes)
    files, domains = read_files(tmp_path / "model"), make_domains()
    model = load_plain("mistral_large4", files.folder, torch.float32, "eager")
    assert set(model.config.get_text_config().kv_sharing_modes) > {"reuse", "store"}
    found, _ = run_streamed(files, layout_of(model), domains, experts="eager")
    assert_same_bits(found, run_resident(model, layout_of(model), domains))


def test_a_model_that_hears_and_sees_is_streamed_on_text_if_its_config_is_complete(checkpoint, tmp_path):
    family, domains = "qwen3_omni_moe_thinker", make_domains()
    folder = shutil.copytree(checkpoint(family), tmp_path / "model")
    layout = layout_of(load_plain(family, folder, torch.float32, "eager"))
    with pytest.raises(UnsupportedModelError, match=r"Qwen3OmniMoe\w+ cannot run on text.*'vision_start_token_id'"):
        run_streamed(read_files(folder), layout, domains, experts="eager")
    config = json.loads((folder / "config.json").read_text())
    missing = dict.fromkeys(("vision_start_token_id", "audio_start_token_id"), 63)
    (folder / "config.json").write_text(json.dumps(config | missing))
    model = load_plain(family, folder, torch.float32, "eager")
    found, _ = run_streamed(read_files(folder), layout, domains, experts="eager")
    assert_same_bits(found, run_resident(model, layout, domains))


class FarSighted(torch.nn.Module):
    """A model each of whose layers also reads what the layer before its neighbour said."""

    def __init__(self):
        super().__init__()
        block = torch.nn.ModuleDict({"experts": torch.nn.Linear(4, 4)})
        block.forward = block["experts"].forward
        self.embedding, self.layers = torch.nn.Embedding(64, 4), torch.nn.ModuleList([block] * 3)
        self.base_model = self.forward

    def forward(self, input_ids, **_):
        said = [self.embedding(input_ids)] * 2
        for layer in self.layers:
            said.append(layer(said[-1] + said[-2]))


def test_layers_that_look_further_back_are_refused_by_name():
    replay, batch, before = Replay(FarSighted()), make_domains()["one"][0], None
    with torch.inference_mode(), pytest.raises(UnsupportedModelError, match=r"2 of FarSighted.*one by one"):
        for index in range(3):
            before = replay.run(index, batch, before)
    assert before is not None


def test_nan_of_damaged_weights_is_told_from_a_family_that_cannot_be_streamed(checkpoint):
    model = load_plain("qwen3_moe", checkpoint("qwen3_moe"), torch.float32)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = torch.nan
    replay, batch = Replay(model), make_domains()["one"][0]
    with torch.inference_mode():
        before = replay.run(0, batch, None)
        with pytest.raises(CheckpointError, match=r"layer 1 gives values that are not finite.*'model\.layers\.1'"):
            replay.run(1, batch, before)
    assert model.model.layers[0] is replay._layers[0]


def test_a_dense_model_has_no_stack():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(hidden_size=16, num_hidden_layers=1, vocab_size=8, intermediate_size=8))
    with pytest.raises(UnsupportedModelError, match="no layer with routed experts"):
        find_stack(model)


def test_ranges_are_the_tensors_bytes(checkpoint):
    from safetensors import safe_open

    files = read_files(checkpoint("olmoe"))
    reader = RangeReader(files.folder, files.tensors)
    for name, info in files.tensors.items():
        with safe_open(files.folder / info.file, framework="pt") as file:
            expected = file.get_tensor(name)
        assert torch.equal(reader.read(name), expected)
        if expected.dim() > 1:
            assert torch.equal(reader.read(name, 1), expected[1])
    reader.close()


def test_a_shard_that_vanishes_or_changes_is_one_error(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "model")
    files = read_files(folder)
    reader = RangeReader(folder, files.tensors)
    name, info = next(iter(files.tensors.items()))
    shard = folder / info.file
    os.utime(shard, (1, 1))
    with pytest.raises(CheckpointError, match=r"not the file it was at the start.*last finished layer"):
        reader.read(name)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"can no longer be read.*last finished layer"):
        reader.read(name)
    with pytest.raises(CheckpointError, match="can no longer be read"):
        RangeReader(folder, files.tensors)


def test_a_shard_cut_short_is_one_error(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "model")
    files = read_files(folder)
    last = max(files.tensors.values(), key=lambda info: (info.file, info.start))
    with (folder / last.file).open("r+b") as file:
        file.truncate(last.start + last.num_bytes - 2)
    reader = RangeReader(folder, files.tensors)
    with pytest.raises(CheckpointError, match="it ends 2 bytes early"):
        reader.read(last.name)
    reader.close()


def test_a_dtype_that_torch_does_not_have_is_refused(checkpoint):
    files = read_files(checkpoint("olmoe"))
    name, info = next(iter(files.tensors.items()))
    with pytest.raises(CheckpointError, match="dtype F4, which cannot be computed with"):
        RangeReader(files.folder, {name: replace(info, dtype="F4")}).read(name)


def test_a_tensor_of_another_shape_is_refused(checkpoint):
    files = read_files(checkpoint("olmoe"))
    small = {**files.config, "intermediate_size": 8}
    streamed = StreamedModel(replace(files, config=small), torch.float32, CPU)
    with pytest.raises(CheckpointError, match="does not fit"):
        streamed._load_layer(0)
