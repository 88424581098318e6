"""The same model under other names: as in memory, as on the hub, with router groups, under another model type."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.families.conftest import PASSING, keep_five, prune, read_bytes, rewrite
from tests.tiny_configs import FAMILIES
from tests.tiny_families import build, load, save
from transformers import DeepseekV3ForCausalLM

from moe_compress.checkpoint.index import read_index
from moe_compress.errors import PlanError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.loading import load_model
from moe_compress.types import pruning_groups

# What the hub has, where that is not what transformers saves.
HUB_LAYOUTS = {
    "deepseek_v4": lambda name, tensor: (
        _rename(name, {"model.": "", "embed_tokens": "embed", "lm_head": "head"}),
        tensor,
    ),
    "kimi_k25": lambda name, tensor: (
        name.replace("language_model.model.blocks.", "language_model.model.layers."),
        tensor,
    ),
    "qwen3_vl_moe": lambda name, tensor: (name, tensor.mT.contiguous() if ".experts." in name else tensor),
}
# What the hub has, where transformers saves the same: it must stay understood under these very names.
HUB_NAMES = {
    "afmoe": ["mlp.router.gate.weight", "mlp.expert_bias", "mlp.experts.7.up_proj.weight"],
    "dbrx": ["ffn.experts.mlp.w1", "ffn.experts.mlp.v1", "ffn.router.layer.weight"],
    "deepseek_v2": ["mlp.experts.7.gate_proj.weight", "mlp.gate.weight"],
    "deepseek_v3": ["mlp.experts.7.gate_proj.weight", "mlp.gate.weight", "mlp.gate.e_score_correction_bias"],
    "ernie4_5_moe": ["mlp.experts.7.up_proj.weight", "mlp.moe_statics.e_score_correction_bias"],
    "exaone_moe": ["mlp.experts.7.up_proj.weight", "mlp.e_score_correction_bias"],
    "gemma4": ["experts.gate_up_proj", "router.proj.weight", "router.per_expert_scale"],
    "glm4_moe": ["mlp.experts.7.gate_proj.weight", "mlp.gate.e_score_correction_bias"],
    "gpt_oss": [
        "mlp.experts.gate_up_proj",
        "mlp.experts.gate_up_proj_bias",
        "mlp.router.weight",
        "mlp.router.bias",
    ],
    "granitemoe": ["block_sparse_moe.input_linear.weight", "block_sparse_moe.router.layer.weight"],
    "hunyuan_v1_moe": ["mlp.experts.7.up_proj.weight", "mlp.gate.wg.weight"],
    "jamba": ["feed_forward.experts.7.up_proj.weight", "feed_forward.router.weight"],
    "kimi_linear": ["block_sparse_moe.experts.7.w1.weight", "block_sparse_moe.gate.e_score_correction_bias"],
    "lfm2_moe": ["feed_forward.experts.7.w1.weight", "feed_forward.expert_bias"],
    "llama4": ["feed_forward.experts.gate_up_proj", "feed_forward.router.weight"],
    "minimax": ["block_sparse_moe.experts.7.w1.weight", "block_sparse_moe.gate.weight"],
    "minimax_m2": ["block_sparse_moe.experts.7.w1.weight", "block_sparse_moe.e_score_correction_bias"],
    "mixtral": ["block_sparse_moe.experts.7.w1.weight", "block_sparse_moe.gate.weight"],
    "nemotron_h": ["mixer.experts.7.up_proj.weight", "mixer.gate.e_score_correction_bias"],
    "olmoe": ["mlp.experts.7.up_proj.weight", "mlp.gate.weight"],
    "phimoe": ["block_sparse_moe.experts.7.w1.weight", "block_sparse_moe.gate.weight"],
    "qwen2_moe": ["mlp.experts.7.up_proj.weight", "mlp.gate.weight"],
    "qwen3_moe": ["mlp.experts.7.up_proj.weight", "mlp.gate.weight"],
    "qwen3_next": ["mlp.experts.7.up_proj.weight", "mlp.gate.weight"],
    "step3p7": ["moe.gate_proj.weight", "moe.gate.weight", "moe.router_bias"],
}
GROUPED = [
    "axk1", "axk2", "bailing_hybrid", "beam", "deepseek_ocr2", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "dots1", "dots3_note", "dots3_note_text", "exaone_moe", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm5_next",
    "glm_moe_dsa", "hy_v4", "kimi_k25", "kimi_linear", "mimo_v2_flash", "mistral3", "mistral4", "mistral_large4",
    "nemotron_h", "solar_open", "unlimited_ocr",
]  # fmt: skip


def _rename(name, pieces):
    for old, new in pieces.items():
        name = name.replace(old, new)
    return name


def write_as(folder, source, change):
    """Write a checkpoint again under the names and shapes that `change(name, tensor)` gives."""
    folder.mkdir()
    state = {}
    for file in source.glob("*.safetensors"):
        state |= dict(change(name, tensor) for name, tensor in load_file(file).items())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", folder)


def check_same_outcome(model, folder, destination):
    """Check that pruning a folder gives the model that pruning in memory gives."""
    kept = keep_five(model)
    prune(folder, destination, kept)
    loaded = load(model.family, destination).state_dict()
    for name, tensor in model.sliced(kept).state_dict().items():
        assert torch.equal(tensor, loaded[name]), name


@pytest.mark.parametrize("family", PASSING)
def test_a_checkpoint_as_the_model_is_in_memory(tiny, tmp_path, family):
    model = tiny(family)
    model.model.save_pretrained(tmp_path / "old", save_original_format=False)
    if set(read_index(tmp_path / "old").tensors) != set(read_index(model.folder).tensors):
        check_same_outcome(model, tmp_path / "old", tmp_path / "new")


@pytest.mark.parametrize("family", sorted(HUB_LAYOUTS))
def test_a_checkpoint_as_the_hub_has_it(tiny, tmp_path, family):
    model = tiny(family)
    write_as(tmp_path / "old", model.folder, HUB_LAYOUTS[family])
    assert read_bytes(tmp_path / "old") != read_bytes(model.folder)
    check_same_outcome(model, tmp_path / "old", tmp_path / "new")


@pytest.mark.parametrize("family", sorted(HUB_NAMES))
def test_what_transformers_saves_has_the_names_of_the_hub(tiny, family):
    names = read_index(tiny(family).folder).tensors
    for ending in HUB_NAMES[family]:
        assert any(name.endswith(f".{ending}") for name in names), ending


@pytest.mark.parametrize("family", GROUPED)
def test_a_router_with_groups_keeps_them(tmp_path, tokens, family):
    fields = FAMILIES[family].get("text_config", FAMILIES[family])
    key = "num_expert_group" if "num_expert_group" in fields else "n_group"
    changes = {key: 2, "topk_group": 1}
    if family in ("deepseek_v2", "deepseek_ocr2", "unlimited_ocr"):
        changes["topk_method"] = "group_limited_greedy"
    model = save(family, tmp_path / "old", **changes)
    assert not torch.equal(model(tokens).logits, build(family)(tokens).logits)  # the router does have groups
    index = read_index(tmp_path / "old")
    found = derive_tensor_map(index.config, index.shapes)
    place = "text_config." if "text_config" in FAMILIES[family] else ""
    assert (found.layout.num_groups, found.layout.topk_groups) == (2, 1)
    assert found.group_keys == (place + key, f"{place}topk_group")
    layers = len(found.layout.layers)
    rewrite(tmp_path / "old", tmp_path / "new", [pruning_groups([0, 2, 3, 4, 5, 7])] * layers)
    assert load(family, tmp_path / "new")(tokens).logits.isfinite().all()
    with pytest.raises(PlanError, match="groups"):
        rewrite(tmp_path / "old", tmp_path / "uneven", [pruning_groups([0, 1, 2, 3, 4, 5])] * layers)


def test_groups_cut_evenly_are_the_model_pruned_in_memory(tiny, tmp_path, tokens):
    changes = {"n_group": 2, "topk_group": 1}
    save("deepseek_v3", tmp_path / "old", **changes)
    kept = {layer: [0, 2, 3, 4, 5, 7] for layer in tiny("deepseek_v3").moe_layers}
    prune(tmp_path / "old", tmp_path / "new", kept)
    in_memory = build("deepseek_v3", 6, **changes)
    in_memory.load_state_dict(tiny("deepseek_v3").sliced(kept).state_dict())
    assert torch.equal(load("deepseek_v3", tmp_path / "new")(tokens).logits, in_memory(tokens).logits)


def test_a_model_type_of_its_own_for_a_stock_class(tiny, tmp_path, tokens):
    source = tiny("deepseek_v3")
    shutil.copytree(source.folder, tmp_path / "old")
    config = json.loads((source.folder / "config.json").read_text()) | {"model_type": "kimi_k2"}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    kept = keep_five(source)
    prune(tmp_path / "old", tmp_path / "new", kept)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "kimi_k2"
    model = load_model(tmp_path / "new", attn_implementation="eager")
    assert type(model) is DeepseekV3ForCausalLM
    for name, tensor in source.sliced(kept).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
