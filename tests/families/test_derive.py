"""What derive says about each family's tensors, and what it refuses."""

import re

import pytest
import torch
from tests.families.conftest import FAMILIES, NUM_EXPERTS, build
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from moe_compress.checkpoint.index import read_index
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.conversion import build_meta_model, shapes_in_memory
from moe_compress.families.derive import derive_tensor_map

MIXTRAL = {"model_type": "mixtral", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12}
MIXTRAL |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
MIXTRAL |= {"num_local_experts": 4, "num_experts_per_tok": 2}


def mixtral_shapes():
    """Return the tensors a Mixtral of that config has on disk, written down by hand."""
    shapes = {"model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        shapes |= {f"{stem}.{norm}_layernorm.weight": (8,) for norm in ("input", "post_attention")}
        shapes |= {f"{stem}.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
        shapes[f"{stem}.block_sparse_moe.gate.weight"] = (4, 8)
        for expert in range(4):
            experts = f"{stem}.block_sparse_moe.experts.{expert}"
            shapes |= {
                f"{experts}.w1.weight": (12, 8),
                f"{experts}.w2.weight": (8, 12),
                f"{experts}.w3.weight": (12, 8),
            }
    return shapes


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_tensor_has_one_role_and_every_expert_all_its_tensors(tiny, family):
    model = tiny(family)
    index = read_index(model.folder)
    found = derive_tensor_map(index.config, index.shapes)
    assert set(found.roles) == set(index.tensors)
    assert found.layout.layers == tuple(model.moe_layers)
    assert found.layout.num_experts == (NUM_EXPERTS,) * len(model.moe_layers)
    assert (found.layout.top_k, found.layout.num_groups) == (2, 1)
    for name, role in found.roles.items():
        numbered = re.search(r"layers\.(\d+)\..*\.experts\.(\d+)\.", name)
        assert (role.kind == "expert") == bool(numbered), name
        if numbered:
            assert (role.layer, role.expert) == (int(numbered[1]), int(numbered[2]))
            assert found.rename(name, 77) == name.replace(f".experts.{numbered[2]}.", ".experts.77.")
        if role.kind == "expert_axis":
            assert index.shapes[name][role.axis] == NUM_EXPERTS
            assert role.is_router == bool(re.search(r"\.(gate|router)\.", name)), name
    per_layer = 3 * NUM_EXPERTS if found.expert_spans else 0
    assert len(found.expert_spans) == per_layer * len(model.moe_layers)


def test_the_handwritten_mixtral_is_understood():
    found = derive_tensor_map(MIXTRAL, mixtral_shapes())
    kinds = [role.kind for role in found.roles.values()]
    # 2 layers x 4 experts x 3 matrices; 2 routers; 2 layers x (2 norms + 4 projections) + 3
    assert [kinds.count(kind) for kind in ("expert", "expert_axis", "untouched")] == [24, 2, 15]
    assert found.count_keys == ("num_local_experts", "num_experts")


def test_a_count_that_no_alias_explains_is_kept_in_step():
    found = derive_tensor_map(MIXTRAL | {"n_routed_experts": 4}, mixtral_shapes())
    assert "n_routed_experts" in found.count_keys


def test_router_groups_come_from_the_config():
    model = build("deepseek_v3", n_group=2, topk_group=1, num_hidden_layers=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layout = derive_tensor_map(model.config.to_dict(), shapes).layout
    assert (layout.num_groups, layout.topk_groups) == (2, 1)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_nested_text_config_and_fused_experts_of_either_orientation(is_transposed):
    text = {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "moe_intermediate_size": 12,
        "num_experts": 4,
        "vocab_size": 32,
    }
    text |= {"num_experts_per_tok": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 12}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16, "intermediate_size": 16}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = CONFIG_MAPPING["qwen3_vl_moe"](text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if is_transposed:
        shapes = {name: (s[0], s[2], s[1]) if ".experts." in name else s for name, s in shapes.items()}
    written = config.to_dict() | {"architectures": [type(model).__name__]}
    found = derive_tensor_map(written, shapes)
    assert set(found.count_keys) == {"text_config.num_local_experts", "text_config.num_experts"}
    fused = found.roles["model.language_model.layers.1.mlp.experts.down_proj"]
    assert (fused.kind, fused.layer, fused.axis, fused.is_router) == ("expert_axis", 1, 0, False)
    assert found.roles["model.visual.blocks.0.mlp.linear_fc1.weight"].kind == "untouched"


def refuse(config, shapes, words):
    with pytest.raises(UnsupportedModelError, match=words):
        derive_tensor_map(config, shapes)


def test_an_unknown_architecture_is_refused():
    refuse(MIXTRAL | {"model_type": "nobody_knows"}, mixtral_shapes(), "model_type 'nobody_knows'")


def test_code_that_came_with_the_checkpoint_is_not_run():
    config = {"model_type": "custom", "auto_map": {"AutoModelForCausalLM": "modeling_custom.Custom"}}
    refuse(config, mixtral_shapes(), "model_type 'custom'")


def test_a_value_of_the_wrong_type_is_refused():
    refuse(MIXTRAL | {"hidden_size": "wide"}, mixtral_shapes(), "refuses this 'mixtral' config.json")


def test_sizes_that_build_no_model_are_refused():
    refuse(MIXTRAL | {"num_attention_heads": 0}, mixtral_shapes(), "cannot build a 'mixtral' model")


def test_a_dense_architecture_is_refused():
    config = (
        {"model_type": "llama"}
        | {key: MIXTRAL[key] for key in MIXTRAL if "expert" not in key}
        | {"model_type": "llama"}
    )
    shapes = {name: shape for name, shape in mixtral_shapes().items() if "block_sparse_moe" not in name}
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        shapes |= {
            f"{mlp}.gate_proj.weight": (12, 8),
            f"{mlp}.up_proj.weight": (12, 8),
            f"{mlp}.down_proj.weight": (8, 12),
        }
    refuse(config, shapes, "'llama' with this config has no routed experts")


def test_a_missing_expert_is_refused_by_name():
    shapes = mixtral_shapes()
    for matrix in ("w1", "w2", "w3"):
        del shapes[f"model.layers.1.block_sparse_moe.experts.3.{matrix}.weight"]
    refuse(MIXTRAL, shapes, r"model\.layers\.1\.mlp\.experts")


def test_a_tensor_nobody_asks_for_is_refused_by_name():
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight_scale_inv"
    refuse(
        MIXTRAL, mixtral_shapes() | {name: (1, 1)}, r"1 tensors do not fit the config: model\.layers\.0.*scale_inv"
    )


def test_experts_under_names_that_do_not_count_are_refused():
    shapes = mixtral_shapes()
    for matrix, shape in {"w1": (12, 8), "w2": (8, 12), "w3": (12, 8)}.items():
        del shapes[f"model.layers.0.block_sparse_moe.experts.3.{matrix}.weight"]
        shapes[f"model.layers.0.block_sparse_moe.experts.9.{matrix}.weight"] = shape
    refuse(MIXTRAL, shapes, "not one per expert")


def test_two_tensors_for_one_parameter_are_refused():
    shapes = mixtral_shapes()
    shapes["model.layers.0.mlp.gate.weight"] = (4, 8)
    refuse(MIXTRAL, shapes, "all claim to be 'model.layers.0.mlp.gate.weight'")


def test_token_to_expert_tables_are_refused():
    shapes = mixtral_shapes() | {"model.layers.0.mlp.gate.tid2eid": (32, 2)}
    refuse(MIXTRAL, shapes, "look experts up by token id")


def test_experts_with_neighbours_on_their_axis_are_refused():
    config = CONFIG_MAPPING["longcat_flash"](
        num_layers=1, hidden_size=16, ffn_hidden_size=16, expert_ffn_hidden_size=8, n_routed_experts=4,
        zero_expert_num=2, moe_topk=2, num_attention_heads=2, vocab_size=32, q_lora_rank=8, kv_lora_rank=8,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    shapes = shapes_in_memory(build_meta_model(config.to_dict()))
    refuse(config.to_dict(), shapes, "its expert axis is not understood")


def test_a_router_without_top_k_is_refused():
    config = CONFIG_MAPPING["deepseek_v2"](
        num_hidden_layers=2, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, n_routed_experts=4,
        num_attention_heads=2, num_key_value_heads=2, vocab_size=32, q_lora_rank=8, kv_lora_rank=8,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, first_k_dense_replace=1, n_shared_experts=1,
    )  # fmt: skip
    shapes = shapes_in_memory(build_meta_model(config.to_dict()))
    refuse(config.to_dict(), shapes, "does not say how many experts a token gets")


def test_experts_in_two_stacks_are_refused():
    config = CONFIG_MAPPING["switch_transformers"](
        num_experts=4,
        d_model=8,
        d_ff=8,
        d_kv=4,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        vocab_size=32,
    )
    written = config.to_dict() | {"architectures": ["SwitchTransformersForConditionalGeneration"]}
    shapes = shapes_in_memory(build_meta_model(written))
    refuse(written, shapes, "more than one stack of layers")


@pytest.mark.parametrize("config", [{"num_hidden_layers": 10**9}, {"vision_config": {"num_layers": 1e300}}])
def test_a_model_that_would_take_forever_to_build(config):
    with pytest.raises(UnsupportedModelError, match=r"more than 1000 'num_.*layers', and no model is that deep"):
        derive_tensor_map({"model_type": "qwen3_moe"} | config, {})


@pytest.mark.parametrize("model_type", [["qwen3_moe"], 7, None])
def test_a_model_type_that_is_no_name(model_type):
    with pytest.raises(UnsupportedModelError, match="does not know"):
        derive_tensor_map({"model_type": model_type}, {})
