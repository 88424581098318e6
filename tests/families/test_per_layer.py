"""Layers with different numbers of experts load as the model sliced in memory, and stock classes refuse them."""

import json
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_families
from tests.tiny_configs import NUM_EXPERTS
from transformers import AutoModelForCausalLM
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import moe_compress
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.collection.resident import settle_weights
from moe_compress.errors import CheckpointError, PlanError, UnsupportedModelError
from moe_compress.families.config_keys import with_layer_values
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.per_layer import read_layer_counts
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import CompressionPlan, pruning_groups

ALL = [
    "deepseek_v3",
    "dots1",
    "ernie4_5_moe",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "hunyuan_v1_moe",
    "jamba",
    "lfm2_moe",
    "llama4_text",
    "minimax_m2",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
]
EAGER = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
OF_EXPERTS = re.compile(r"\.(experts|gate|router|moe_statics)\.|(correction|expert)_bias$")
COUNTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


@dataclass(frozen=True)
class Saved:
    """A tiny model, and the folder it was saved in."""

    family: str
    model: torch.nn.Module
    folder: Path

    @property
    def expert_axes(self):
        """In-memory tensor -> (layer, axis), for each tensor with one slice per expert."""
        found = {}
        for name, tensor in self.model.state_dict().items():
            if OF_EXPERTS.search(name) and "shared" not in name and NUM_EXPERTS in tensor.shape:
                layer = int(re.search(r"layers\.(\d+)\.", name)[1])
                found[name] = (layer, list(tensor.shape).index(NUM_EXPERTS))
        return found

    @property
    def moe_layers(self):
        return sorted({layer for layer, _ in self.expert_axes.values()})


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Return family -> tiny model, saved once per session."""

    @cache
    def make(family):
        folder = tmp_path_factory.mktemp(family) / "model"
        return Saved(family, tiny_families.save(family, folder), folder)

    return make


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
    """Return the model with each layer's own experts, by slicing the parameters and counts of a built model."""
    sliced = tiny_families.build(model.family)
    places = set()
    for name, (layer, axis) in model.expert_axes.items():
        place, _, last = name.rpartition(".")
        places.add((layer, place))
        owner = sliced.get_submodule(place)
        value = getattr(owner, last).detach().index_select(axis, torch.tensor(kept[layer])).clone()
        if last in owner._parameters:
            owner._parameters[last] = torch.nn.Parameter(value)
        else:
            owner._buffers[last] = value
    for layer, place in places:
        for module in (sliced.get_submodule(place), sliced.get_submodule(place.rpartition(".")[0])):
            for attribute in COUNTS:
                if vars(module).get(attribute) == NUM_EXPERTS:
                    setattr(module, attribute, len(kept[layer]))
    return sliced


@pytest.fixture(scope="session", params=ALL)
def written(request, saved, tmp_path_factory):
    """A tiny model, its uneven checkpoint, and the experts that were kept."""
    model = saved(request.param)
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
    assert torch.equal(settle_weights(loaded)(tokens).logits, settle_weights(expected)(tokens).logits)


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
    saved_again = moe_compress.load_model(tmp_path, **EAGER)
    again = json.loads((tmp_path / "config.json").read_text())
    layers = json.loads((folder / "config.json").read_text())["per_layer_config"]
    assert again["per_layer_config"] == layers
    assert again["architectures"] == [type(model.model).__name__]
    assert torch.equal(settle_weights(saved_again)(tokens).logits, settle_weights(loaded)(tokens).logits)


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
    # Experts without this mark, llama4's, are not dispatched by the switch in any model.
    assert used == [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]


def test_stock_checkpoints_load_the_stock_way(saved, tokens):
    model = saved("olmoe")
    loaded = moe_compress.load_model(model.folder, **EAGER)
    assert type(loaded) is type(model.model)
    assert torch.equal(settle_weights(loaded)(tokens).logits, settle_weights(model.model)(tokens).logits)


def test_the_dtype_is_obeyed(saved, tmp_path):
    model = saved("qwen3_moe")
    rewrite(model.folder, tmp_path / "new", uneven(model))
    loaded = moe_compress.load_model(tmp_path / "new", dtype=torch.bfloat16, device_map="cpu")
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training


def test_settings_of_the_config_may_be_given(saved, tmp_path):
    model = saved("qwen3_moe")
    rewrite(model.folder, tmp_path / "new", uneven(model))
    loaded = moe_compress.load_model(tmp_path / "new", use_cache=False, num_experts_per_tok=3)
    assert (loaded.config.use_cache, loaded.model.layers[0].mlp.gate.top_k) == (False, 3)


def test_weights_of_another_size_are_refused(saved, tmp_path):
    model = saved("glm4_moe")
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


def test_a_layer_without_experts_has_no_number_of_its_own(saved, tmp_path):
    model = saved("glm4_moe")  # its layer 0 is dense
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


def test_a_copy_of_the_number_outside_the_text_config_stays_the_largest(saved, tmp_path):
    model = saved("glm4v_moe")
    config = json.loads((model.folder / "config.json").read_text())
    shutil.copytree(model.folder, tmp_path / "copied")
    (tmp_path / "copied" / "config.json").write_text(json.dumps(config | {"num_experts": NUM_EXPERTS}))
    planned = rewrite(tmp_path / "copied", tmp_path / "new", {1: range(3), 2: range(5)})
    assert planned.config["num_experts"] == planned.config["text_config"]["n_routed_experts"] == 5
    assert planned.config["text_config"]["per_layer_config"] == {"1": {"n_routed_experts": 3}}
    assert "per_layer_config" not in planned.config
    _, info = moe_compress.load_model(tmp_path / "new", output_loading_info=True, **EAGER)
    assert not any(info.values())


def test_a_family_that_counts_experts_where_there_are_no_layers_keeps_them_alike(saved, tmp_path):
    words = r"counts experts in ffn_config, which knows no layers\); give each the same number .*scope: per_layer"
    with pytest.raises(PlanError, match=words):
        rewrite(saved("dbrx").folder, tmp_path / "new", dict(enumerate(map(range, (4, 5, 5)))))
    rewrite(saved("dbrx").folder, tmp_path / "new", dict.fromkeys(range(3), range(5)))


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


def test_settings_a_layer_has_already_are_joined_not_doubled():
    config = {"num_experts": 8, "per_layer_config": {"0": {"head_dim": 2}}}
    changed = with_layer_values(config, ("num_experts",), {0: 3, 11: 4})
    assert changed["per_layer_config"] == {"0": {"head_dim": 2, "num_experts": 3}, "11": {"num_experts": 4}}


def test_a_checkpoint_of_uneven_layers_is_no_base_model(written):
    _, folder, _ = written
    index = read_index(folder)
    with pytest.raises(UnsupportedModelError, match="layers keep different numbers of experts"):
        derive_tensor_map(index.config, index.shapes)
