"""Layers with different numbers of experts load as the model sliced in memory, and stock classes refuse them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.families.conftest import FAMILIES, build, count_key
from transformers import AutoModelForCausalLM
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import moe_compress
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.errors import CheckpointError, UnsupportedModelError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.per_layer import read_layer_counts
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import CompressionPlan, pruning_groups

ALL = sorted(FAMILIES)
EAGER = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}


def uneven(model):
    """Return different experts for each MoE layer, 3 of the first, one more of each next."""
    return {
        layer: sorted((2 * layer + 3 * i) % 8 for i in range(3 + n)) for n, layer in enumerate(model.moe_layers)
    }


def rewrite(source, destination, kept):
    index = read_index(source)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    plan = CompressionPlan(tensor_map.layout, tuple(map(pruning_groups, kept.values())), "test")
    planned = plan_rewrite(index, tensor_map, plan, layout="per_layer", max_shard_bytes=40_000)
    verify_checkpoint(planned.config, planned.shapes)
    write_checkpoint(planned, destination)
    return planned


def slice_in_memory(model, kept):
    """Return the model with each layer's own experts, by slicing the parameters of a loaded model."""
    sliced = build(model.family)
    sliced.load_state_dict(model.state)
    for name, tensor in list(sliced.state_dict().items()):
        layer = int(match[1]) if (match := re.search(r"layers\.(\d+)\.", name)) else None
        owner = sliced.get_submodule(name.rpartition(".")[0])
        last = name.rpartition(".")[2]
        if re.search(r"\.(experts|gate|router)\.", name) and "shared" not in name and layer in kept:
            store = owner._parameters if last in owner._parameters else owner._buffers
            value = tensor[kept[layer]].clone()
            store[last] = torch.nn.Parameter(value) if store is owner._parameters else value
    for name, module in sliced.named_modules():
        if (match := re.search(r"layers\.(\d+)\.(mlp|block_sparse_moe)", name)) and int(match[1]) in kept:
            for attribute in ("num_experts", "n_routed_experts", "num_local_experts"):
                if hasattr(module, attribute):
                    setattr(module, attribute, len(kept[int(match[1])]))
    return sliced.eval()


@pytest.fixture(scope="session", params=ALL)
def written(request, tiny, tmp_path_factory):
    """A tiny model, its uneven checkpoint, and the experts that were kept."""
    model = tiny(request.param)
    kept = uneven(model)
    folder = tmp_path_factory.mktemp("uneven") / request.param
    rewrite(model.folder, folder, kept)
    return model, folder, kept


def test_loaded_is_sliced_in_memory_to_the_bit(written, tokens):
    model, folder, kept = written
    loaded, info = moe_compress.load_model(folder, output_loading_info=True, **EAGER)
    assert not any(info.values())
    expected = slice_in_memory(model, kept)
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(loaded(tokens).logits, expected(tokens).logits)


def test_stock_transformers_refuses_it_loudly(written):
    _, folder, _ = written
    with pytest.raises(AmbiguousGlobalPerLayerAttributeError, match="is a per-layer attribute"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_loader_that_passes_over_per_layer_config_finds_other_sizes(written, tmp_path):
    _, folder, _ = written
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["per_layer_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_saved_again_it_is_the_same_checkpoint(written, tmp_path, tokens):
    model, folder, _ = written
    loaded = moe_compress.load_model(folder, **EAGER)
    loaded.save_pretrained(tmp_path)
    again = json.loads((tmp_path / "config.json").read_text())
    layers = json.loads((folder / "config.json").read_text())["per_layer_config"]
    assert again["per_layer_config"] == layers
    assert again["architectures"] == [type(model.model).__name__]
    assert torch.equal(moe_compress.load_model(tmp_path, **EAGER)(tokens).logits, loaded(tokens).logits)


def test_one_switch_reaches_every_layers_experts(written, tokens):
    _, folder, _ = written
    model = moe_compress.load_model(folder, **EAGER)
    used = []
    stock = ALL_EXPERTS_FUNCTIONS["grouped_mm"]

    def spy(self, *args):
        used.append(self)
        return stock(self, *args)

    ALL_EXPERTS_FUNCTIONS["spy"] = spy
    try:
        model.set_experts_implementation("spy")
        model(tokens)
    finally:
        del ALL_EXPERTS_FUNCTIONS["spy"]
    assert used == [module for name, module in model.named_modules() if name.endswith(".experts")]


def test_stock_checkpoints_load_the_stock_way(tiny, tokens):
    model = tiny("olmoe")
    loaded = moe_compress.load_model(model.folder, **EAGER)
    assert type(loaded) is type(model.model)
    assert torch.equal(loaded(tokens).logits, model.model(tokens).logits)


def test_the_dtype_is_obeyed(tiny, tmp_path):
    model = tiny("qwen3_moe")
    rewrite(model.folder, tmp_path / "new", uneven(model))
    loaded = moe_compress.load_model(tmp_path / "new", dtype=torch.bfloat16, device_map="cpu")
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training


def test_weights_of_another_size_are_refused(tiny, tmp_path):
    model = tiny("glm4_moe")
    planned = rewrite(model.folder, tmp_path / "new", uneven(model))
    shapes = planned.shapes
    name = "model.layers.1.mlp.gate.weight"
    with pytest.raises(CheckpointError, match=f"1 mismatched .*{name}"):
        verify_checkpoint(planned.config, shapes | {name: (4, shapes[name][1])})
    file = next(f for f in (tmp_path / "new").glob("*.safetensors") if name in load_file(f))
    tensors = load_file(file)
    save_file(tensors | {name: torch.zeros(4, shapes[name][1])}, file, {"format": "pt"})
    with pytest.raises(RuntimeError, match="mismatched"):
        moe_compress.load_model(tmp_path / "new")


def test_a_layer_without_experts_has_no_number_of_its_own(tiny, tmp_path):
    model = tiny("glm4_moe")  # its layer 0 is dense
    planned = rewrite(model.folder, tmp_path / "new", uneven(model))
    config = planned.config | {"per_layer_config": {"0": {"n_routed_experts": 3}}}
    with pytest.raises(
        UnsupportedModelError, match=r"layer 0 has its own .* no tensor of that layer depends on it"
    ):
        verify_checkpoint(config, planned.shapes)


@pytest.mark.parametrize("count", [0, -1, "three", 2.5, True, None])
@pytest.mark.parametrize("layer", ["0", "00"])
def test_numbers_nobody_can_build_are_refused(layer, count):
    with pytest.raises(UnsupportedModelError, match=f"gives layer '{layer}' num_experts = {count!r}"):
        read_layer_counts({"per_layer_config": {layer: {"num_experts": count}}})


@pytest.mark.parametrize("layers", [[3, 4], {"0": 3}, "eight"])
def test_a_per_layer_config_of_another_form_is_refused(layers):
    with pytest.raises(UnsupportedModelError, match=r"text\.per_layer_config in config.json is no table of layers"):
        read_layer_counts({"text": {"per_layer_config": layers}})


@pytest.mark.parametrize("layer", ["-1", "first"])
def test_a_layer_that_is_no_index_is_refused(layer):
    with pytest.raises(UnsupportedModelError, match="give the layer's index"):
        read_layer_counts({"per_layer_config": {layer: {"num_experts": 2}}})


def test_other_settings_of_a_layer_stay_where_they_are():
    config = {
        "text_config": {
            "num_experts": 8,
            "per_layer_config": {"03": {"num_experts": 4, "head_dim": 2}, "05": {"head_dim": 2}},
        }
    }
    found = read_layer_counts(config)
    assert found.prefix == "text_config."
    assert found.counts == {3: {"num_experts": 4}}
    assert found.plain["text_config"]["per_layer_config"] == {"03": {"head_dim": 2}, "05": {"head_dim": 2}}
    assert read_layer_counts(found.plain) is None
    assert "num_experts" in config["text_config"]["per_layer_config"]["03"]


def test_a_checkpoint_of_uneven_layers_is_no_base_model(written):
    _, folder, _ = written
    index = read_index(folder)
    with pytest.raises(UnsupportedModelError, match="layers keep different numbers of experts"):
        derive_tensor_map(index.config, index.shapes)


def test_families_count_under_known_names():
    assert {count_key(family) for family in ALL} <= set(moe_compress.families.config_keys.COUNT_NAMES)
