"""What derive says about each family's tensors, and what it refuses."""

import pytest
from tests.tiny_configs import FAMILIES
from tests.tiny_families import build
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from moe_compress.checkpoint.index import read_index
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.building import build_meta_model
from moe_compress.families.config_keys import COUNT_NAMES
from moe_compress.families.conversion import shapes_in_memory
from moe_compress.families.counting import find_count
from moe_compress.families.departures import Departure
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


def test_the_handwritten_mixtral_is_understood():
    found = derive_tensor_map(MIXTRAL, mixtral_shapes())
    kinds = [role.kind for role in found.roles.values()]
    # 2 layers x 4 experts x 3 matrices; 2 routers; 2 layers x (2 norms + 4 projections) + 3
    assert [kinds.count(kind) for kind in ("expert", "expert_axis", "untouched")] == [24, 2, 15]
    assert found.count_keys == ("num_local_experts",)


def test_a_count_that_no_alias_explains_is_kept_in_step():
    found = derive_tensor_map(MIXTRAL | {"n_routed_experts": 4}, mixtral_shapes())
    assert "n_routed_experts" in found.count_keys


def test_the_count_of_a_nested_config_is_written_there_and_wherever_it_is_repeated(tiny):
    index = read_index(tiny("glm4v_moe").folder)
    text = index.config["text_config"] | {"num_experts": 8, "num_local_experts": 8}
    found = derive_tensor_map(dict(index.config) | {"text_config": text, "moe_num_experts": 8}, index.shapes)
    # `num_local_experts` is an alias that the family reads; the other two it does not, and another reader might
    assert set(found.count_keys) == {
        "text_config.n_routed_experts",
        "text_config.num_local_experts",
        "text_config.num_experts",
        "moe_num_experts",
    }


def test_a_number_that_the_file_leaves_to_the_default_is_written_under_its_own_name(tiny):
    model = build("deepseek_v3", n_group=8, topk_group=4, num_experts=16)
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("n_group", "topk_group")}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = derive_tensor_map(config, shapes)
    assert (found.layout.num_groups, found.layout.topk_groups) == (8, 4)
    assert found.group_keys == ("n_group", "topk_group")


def test_groups_that_the_router_does_not_look_at_are_none():
    for changes in ({"topk_method": "greedy"}, {"topk_method": "group_limited_greedy"}):
        model = build("deepseek_v2", n_group=2, topk_group=1, **changes)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = derive_tensor_map(model.config.to_dict(), shapes)
        assert found.layout.num_groups == (1 if changes["topk_method"] == "greedy" else 2)
        assert bool(found.group_keys) == (changes["topk_method"] != "greedy")
    found = derive_tensor_map(MIXTRAL | {"n_group": 2, "topk_group": 1}, mixtral_shapes())
    assert (found.layout.num_groups, found.group_keys) == (1, ())


def test_one_number_of_experts_per_token_may_be_told_layer_by_layer(tiny):
    index = read_index(tiny("hunyuan_v1_moe").folder)
    assert derive_tensor_map(dict(index.config) | {"moe_topk": [2, 2, 2]}, index.shapes).layout.top_k == 2
    refuse(dict(index.config) | {"moe_topk": [2, 1, 2]}, index.shapes, r"gives a token \[2, 1, 2\]")


def test_a_router_that_can_only_pick_two_is_not_told_three(tiny):
    index = read_index(tiny("phimoe").folder)
    refuse(dict(index.config) | {"num_experts_per_tok": 3}, index.shapes, "'phimoe' gives a token 3 experts")


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
    refuse(
        MIXTRAL | {"num_attention_heads": 0},
        mixtral_shapes(),
        "cannot build a 'mixtral' model .* correct it, or use",
    )


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
        MIXTRAL,
        mixtral_shapes() | {name: (1, 1)},
        r"do not fit each other: 1 unexpected \(model\.layers\.0.*scale_inv",
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


def test_a_fused_tensor_beside_the_experts_it_would_hold_is_refused():
    shapes = mixtral_shapes() | {"model.layers.0.mlp.experts.gate_up_proj": (4, 24, 8)}
    refuse(MIXTRAL, shapes, r"9 tensors all claim to be 'model\.layers\.0\.mlp\.experts\.gate_up_proj'")


def test_token_to_expert_tables_are_refused():
    model = build("deepseek_v4", mlp_layer_types=["hash_moe", "moe", "moe"])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    refuse(model.config.to_dict(), shapes, r"1 tensors look experts up by token id: model\.layers\.0\..*tid2eid")


def test_neighbours_on_the_experts_axis_are_refused_unless_the_family_says_where_they_are(tiny):
    index = read_index(tiny("zaya").folder)
    config = dict(index.config)
    in_memory = shapes_in_memory(build_meta_model(config))
    with pytest.raises(UnsupportedModelError, match=r"goes from \[9\] to \[17\].*not understood"):
        find_count(config, in_memory, Departure())
    assert find_count(config, in_memory, Departure(has_rows_after_experts=True)).value == 8


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


def test_no_family_with_experts_is_forgotten():
    texts = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        | modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        | modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
        | modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    )
    counting = {family for family in texts if counts_experts(CONFIG_MAPPING[family])}
    assert counting - set(FAMILIES) == {
        "diffusion_gemma",
        "doge",
        "nllb-moe",
        "qwen3_omni_moe",
        "switch_transformers",
    }


def counts_experts(config_class):
    """Whether a config class, or one nested in it, has a number of experts."""
    names = [*COUNT_NAMES, *(alias for alias in config_class.attribute_map if alias in COUNT_NAMES)]
    nested = config_class.sub_configs.values()
    return any(hasattr(config_class, name) or name in config_class.attribute_map for name in names) or any(
        counts_experts(part) for part in nested if hasattr(part, "attribute_map")
    )


def test_a_family_without_experts_of_its_own_kind_is_refused():
    config = {"model_type": "doge", "is_moe": True, "num_hidden_layers": 1}
    refuse(config, {}, "'doge' cannot be compressed: its experts are single neurons")


def test_two_stacks_of_denoising_layers_are_refused():
    names = {"architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma"}
    text = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8, "enable_moe_block": True}
    config = CONFIG_MAPPING["diffusion_gemma"](text_config=text).to_dict() | names
    refuse(config, shapes_in_memory(build_meta_model(config)), "more than one stack of layers")


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**9},
        {"vision_config": {"num_layers": 1e300}},
        {"model_type": "glm4v_moe", "vision_config": {"depth": 2**31}},
    ],
)
def test_a_model_that_would_take_forever_to_build(config):
    with pytest.raises(
        UnsupportedModelError, match=r"more than 1000 '(num_.*layers|depth)', and no model is that deep"
    ):
        derive_tensor_map({"model_type": "qwen3_moe"} | config, {})


@pytest.mark.parametrize("model_type", [["qwen3_moe"], 7, None])
def test_a_model_type_that_is_no_name(model_type):
    with pytest.raises(UnsupportedModelError, match="is no text"):
        derive_tensor_map({"model_type": model_type}, {})
