"""What a quantised checkpoint's names and shapes say, for each format, and what is refused."""

import pytest
from tests.families.test_derive import MIXTRAL, mixtral_shapes

from moe_compress.errors import PlanError, UnsupportedModelError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.module_lists import update_module_lists
from moe_compress.families.quantised import extend_to_parts, view_plain
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import Encoding, MoELayout, TensorMap, TensorRole, pruning_groups

WIDTH = 160  # not a multiple of a block: two rows of blocks, the last one cut
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
PER_CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel"}


def compressed(weights, packing="float-quantized"):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": groups, "ignore": ["lm_head"]}


def config_with(settings, **changes):
    return (
        MIXTRAL | {"hidden_size": WIDTH, "intermediate_size": WIDTH} | changes | {"quantization_config": settings}
    )


def plain_shapes():
    return {name: tuple({8: WIDTH, 12: WIDTH}.get(n, n) for n in shape) for name, shape in mixtral_shapes().items()}


def is_projection(name):
    return "_proj." in name or ".experts." in name


def with_scales(shape_of, word="weight_scale_inv"):
    """Return shapes with a tensor of scales beside every projection."""
    shapes = plain_shapes()
    extra = {
        name.replace(".weight", f".{word}"): shape_of(*shape)
        for name, shape in shapes.items()
        if is_projection(name)
    }
    return shapes | extra


def blocks(rows, columns):
    return -(-rows // 128), -(-columns // 128)


SCALED = {
    "blocks": (BLOCKS, blocks, "weight_scale_inv", (128, 128)),
    "power-of-two blocks": (BLOCKS | {"scale_fmt": "ue8m0"}, blocks, "scale", (128, 128)),
    "groups of 32": ({"quant_method": "mxfp8"}, lambda r, c: (r, c // 32), "weight_scale_inv", (1, 32)),
    "tensors": ({"quant_method": "fp8"}, lambda r, c: (), "weight_scale", (WIDTH, WIDTH)),
    "compressed channels": (compressed(PER_CHANNEL), lambda r, c: (r, 1), "weight_scale", (1, WIDTH)),
    "compressed tensors": (compressed(PER_CHANNEL), lambda r, c: (1,), "weight_scale", (WIDTH, WIDTH)),
    "compressed flat channels": (compressed(PER_CHANNEL), lambda r, c: (r,), "weight_scale", (1, WIDTH)),
    "compressed blocks": (
        compressed(PER_CHANNEL | {"strategy": "block", "block_structure": [128, 128]}),
        blocks,
        "weight_scale",
        (128, 128),
    ),
    "compressed groups": (
        compressed(PER_CHANNEL | {"strategy": "group", "group_size": 32}),
        lambda r, c: (r, c // 32),
        "weight_scale",
        (1, 32),
    ),
}


@pytest.mark.parametrize("kind", SCALED)
def test_scales_belong_to_their_weight_and_their_expert(kind):
    settings, shape_of, word, block = SCALED[kind]
    shapes = with_scales(shape_of, word)
    config = config_with(settings)
    found = derive_tensor_map(config, shapes)
    projections = {name for name in plain_shapes() if is_projection(name)}
    assert found.encodings == {
        name: Encoding("fp8", name, name.replace(".weight", f".{word}"), block) for name in projections
    }
    assert set(found.parts) == projections | {name.replace(".weight", f".{word}") for name in projections}
    assert set(found.roles) == set(shapes)
    scales = f"model.layers.1.block_sparse_moe.experts.3.w2.{word}"
    assert found.roles[scales] == TensorRole("expert", 1, 3)
    assert found.rename(scales, 12) == scales.replace("experts.3", "experts.12")
    assert found.roles[f"model.layers.1.self_attn.q_proj.{word}"] == TensorRole("untouched")
    verify_checkpoint(config, shapes)


def test_static_input_scales_move_with_their_expert_and_are_no_encoding():
    shapes = with_scales(blocks) | with_scales(lambda r, c: (1,), "input_scale")
    found = derive_tensor_map(config_with(BLOCKS | {"activation_scheme": "static"}), shapes)
    name = "model.layers.0.block_sparse_moe.experts.2.w1.input_scale"
    assert found.roles[name] == TensorRole("expert", 0, 2)
    assert found.parts[name] == name.replace("input_scale", "weight")
    assert all("input_scale" not in encoding.scales for encoding in found.encodings.values())


PACKED = {
    "integers of 4 bits": (compressed({"num_bits": 4, "type": "int"}, "pack-quantized"), 8),
    "integers of 8 bits": (compressed({"num_bits": 8, "type": "int"}, "pack-quantized"), 4),
    "NVFP4": (compressed({"num_bits": 4, "type": "float"}, "nvfp4-pack-quantized"), 2),
}


def pack(factor):
    shapes = {}
    for name, shape in plain_shapes().items():
        if is_projection(name):
            stem = name.removesuffix(".weight")
            shapes |= {f"{stem}.weight_packed": (shape[0], shape[1] // factor), f"{stem}.weight_shape": (2,)}
            shapes[f"{stem}.weight_scale"] = (shape[0], shape[1] // 32)
        else:
            shapes[name] = shape
    return shapes


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_are_pruned_by_bytes_and_not_decoded(kind):
    settings, factor = PACKED[kind]
    found = derive_tensor_map(config_with(settings), pack(factor))
    assert not found.encodings
    stem = "model.layers.1.block_sparse_moe.experts.3.w2"
    parts = {f"{stem}.{word}" for word in ("weight_packed", "weight_shape", "weight_scale")}
    assert {name for name, weight in found.parts.items() if weight == f"{stem}.weight"} == parts
    assert {found.roles[name].expert for name in parts} == {3}
    verify_checkpoint(config_with(settings), pack(factor))


def test_integers_of_8_bits_are_no_fp8():
    settings = compressed({"num_bits": 8, "type": "int"}, "int-quantized")
    found = derive_tensor_map(config_with(settings), with_scales(lambda r, c: (r, 1), "weight_scale"))
    assert found.parts
    assert not found.encodings


def test_fp4_experts_beside_fp8_are_twice_as_wide_as_stored():
    shapes = {
        "model.layers.0.mlp.experts.1.up_proj.weight": (64, 32),
        "model.layers.0.self_attn.o_proj.weight": (128, 128),
    }
    scales = {name.replace(".weight", ".scale"): (64, 2) if "experts" in name else (1, 1) for name in shapes}
    view = view_plain({"quantization_config": BLOCKS | {"expert_dtype": "fp4"}}, shapes | scales)
    assert view.shapes == {**shapes, "model.layers.0.mlp.experts.1.up_proj.weight": (64, 64)}
    assert set(view.encodings) == {"model.layers.0.self_attn.o_proj.weight"}


GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 96, "num_local_experts": 4, "head_dim": 8,
    "num_experts_per_tok": 2, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": 32, "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip


def gpt_oss_shapes():
    stem = "model.layers.0"
    shapes = {"model.embed_tokens.weight": (32, 64), "lm_head.weight": (32, 64), "model.norm.weight": (64,)}
    shapes |= {f"{stem}.{norm}_layernorm.weight": (64,) for norm in ("input", "post_attention")}
    for name in "qkv":
        shapes |= {f"{stem}.self_attn.{name}_proj.weight": (16, 64), f"{stem}.self_attn.{name}_proj.bias": (16,)}
    shapes |= {f"{stem}.self_attn.o_proj.weight": (64, 16), f"{stem}.self_attn.o_proj.bias": (64,)}
    shapes |= {f"{stem}.self_attn.sinks": (2,)}
    shapes |= {f"{stem}.mlp.router.weight": (4, 64), f"{stem}.mlp.router.bias": (4,)}
    experts = f"{stem}.mlp.experts"
    shapes |= {f"{experts}.gate_up_proj_blocks": (4, 192, 2, 16), f"{experts}.gate_up_proj_scales": (4, 192, 2)}
    shapes |= {f"{experts}.down_proj_blocks": (4, 64, 3, 16), f"{experts}.down_proj_scales": (4, 64, 3)}
    return shapes | {f"{experts}.gate_up_proj_bias": (4, 192), f"{experts}.down_proj_bias": (4, 64)}


def test_mxfp4_blocks_are_the_transposed_weight():
    shapes = gpt_oss_shapes()
    found = derive_tensor_map(GPT_OSS, shapes)
    stem = "model.layers.0.mlp.experts"
    assert found.encodings == {
        f"{stem}.{name}_proj": Encoding(
            "mxfp4", f"{stem}.{name}_proj_blocks", f"{stem}.{name}_proj_scales", (32, 1)
        )
        for name in ("gate_up", "down")
    }
    view = view_plain(GPT_OSS, shapes)
    assert (view.shapes[f"{stem}.gate_up_proj"], view.shapes[f"{stem}.down_proj"]) == ((4, 64, 192), (4, 96, 64))
    for name in ("gate_up_proj_blocks", "down_proj_scales", "down_proj_bias"):
        assert found.roles[f"{stem}.{name}"] == TensorRole("expert_axis", 0)
    verify_checkpoint(GPT_OSS, shapes)


def fused_mixtral(scales, extra=()):
    """Return a Mixtral with fused FP8 experts, as transformers itself saves them."""
    shapes = {name: shape for name, shape in plain_shapes().items() if ".experts." not in name}
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts"
        shapes |= {f"{stem}.gate_up_proj": (4, 2 * WIDTH, WIDTH), f"{stem}.down_proj": (4, WIDTH, WIDTH)}
        shapes |= {
            f"{stem}.gate_up_proj_scale_inv": scales(2 * WIDTH),
            f"{stem}.down_proj_scale_inv": scales(WIDTH),
        }
        shapes |= {f"{stem}.{name}": shape for name, shape in extra}
    return shapes


@pytest.mark.parametrize(
    "scales", [lambda rows: (4, -(-rows // 128), 2), lambda rows: (4, 1, 1), lambda rows: (4,)]
)
def test_fused_experts_have_fused_scales(scales):
    found = derive_tensor_map(config_with(BLOCKS), fused_mixtral(scales))
    stem = "model.layers.1.mlp.experts"
    for name in ("gate_up_proj", "gate_up_proj_scale_inv", "down_proj_scale_inv"):
        assert found.roles[f"{stem}.{name}"] == TensorRole("expert_axis", 1)


def test_one_scale_for_all_experts_is_kept():
    shapes = fused_mixtral(lambda rows: (4, -(-rows // 128), 2), [("down_proj_activation_scale", ())])
    found = derive_tensor_map(config_with(BLOCKS), shapes)
    assert found.roles["model.layers.0.mlp.experts.down_proj_activation_scale"] == TensorRole("untouched")


def test_the_settings_of_a_nested_config_are_found_and_removed():
    config = {"text_config": {"hidden_size": 8, "quantization_config": BLOCKS}, "vision_config": {"depth": 2}}
    view = view_plain(config, {"up.weight": (8, 8), "up.weight_scale_inv": (1, 1)})
    assert view.config == {"text_config": {"hidden_size": 8}, "vision_config": {"depth": 2}}
    assert set(view.encodings) == {"up.weight"}


def test_a_plain_checkpoint_is_its_own_view():
    shapes = {"gate.weight": (4, 4), "gate.scale": (4,)}
    view = view_plain(MIXTRAL, shapes)
    assert (view.config, view.shapes, view.parts, view.encodings) == (MIXTRAL, shapes, {}, {})


def refuse(config, shapes, words):
    with pytest.raises(UnsupportedModelError, match=words):
        derive_tensor_map(config, shapes)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", None])
def test_a_method_not_understood_is_refused_by_name(method):
    refuse(config_with({"quant_method": method, "bits": 4}), plain_shapes(), f"quant_method {method!r}, understood")


@pytest.mark.parametrize("shape", [(1, 2), (2, 2, 1), (3, 2)])
def test_scales_that_are_not_one_per_block_are_refused(shape):
    name = "model.layers.0.self_attn.q_proj.weight_scale_inv"
    refuse(config_with(BLOCKS), with_scales(blocks) | {name: shape}, "not one for each of its blocks")


def test_scales_of_a_vector_are_refused():
    shapes = with_scales(blocks) | {"model.norm.weight_scale_inv": (2,)}
    refuse(config_with(BLOCKS), shapes, r"'model\.norm\.weight' \[160\] has scales of shape \[2\]")


def test_scales_of_an_empty_weight_are_refused():
    shapes = {"up.weight": (0, 128), "up.weight_scale_inv": (0, 1)}
    with pytest.raises(UnsupportedModelError, match="not one for each of its blocks"):
        view_plain({"quantization_config": BLOCKS}, shapes)


def test_mxfp4_scales_that_do_not_fit_are_refused():
    name = "model.layers.0.mlp.experts.down_proj_scales"
    refuse(GPT_OSS, gpt_oss_shapes() | {name: (4, 64, 2)}, "not one for each of its blocks")


def test_codes_without_scales_are_refused():
    shapes = gpt_oss_shapes()
    del shapes["model.layers.0.mlp.experts.down_proj_scales"]
    refuse(GPT_OSS, shapes, r"'model\.layers\.0\.mlp\.experts\.down_proj_blocks' has no scales")


@pytest.mark.parametrize("shape", [(), (4, 64)])
def test_codes_without_the_axes_of_codes_are_refused(shape):
    name = "model.layers.0.mlp.experts.down_proj_blocks"
    refuse(GPT_OSS, gpt_oss_shapes() | {name: shape}, "holds no codes")
    packed = {"model.layers.0.self_attn.q_proj.weight_packed": ()}
    refuse(config_with(PACKED["NVFP4"][0]), pack(2) | packed, "holds no codes")


@pytest.mark.parametrize("groups", [None, ["a"], {"a": 1}, {"a": {"weights": ["float"]}}])
def test_groups_that_are_no_groups_are_passed_over(groups):
    settings = compressed(PER_CHANNEL) | {"config_groups": groups}
    assert derive_tensor_map(config_with(settings), with_scales(lambda r, c: (r, 1), "weight_scale")).encodings


def test_scales_without_a_weight_are_refused_by_name():
    shapes = with_scales(blocks) | {"model.layers.0.self_attn.k_scale": (1,)}
    refuse(
        config_with(BLOCKS), shapes, r"do not fit each other: 1 unexpected \(model\.layers\.0\.self_attn\.k_scale"
    )


def test_two_tensors_of_scales_for_one_weight_are_refused():
    shapes = with_scales(blocks) | {"model.layers.0.self_attn.q_proj.weight_scale": (2, 2)}
    refuse(config_with(BLOCKS), shapes, "both claim to be the scales of")


@pytest.mark.parametrize("bits", [3, None])
def test_an_unknown_packing_is_refused(bits):
    refuse(config_with(compressed({"num_bits": bits}, "pack-quantized")), pack(8), "packs an unknown number of")


def extend_rows(scales, block):
    """Return the role of the scales of a weight that holds 4 experts of 96 rows each, one below the other."""
    shapes = {"w1": (4 * 96, 8), "w1_scale_inv": scales}
    view = view_plain({"quantization_config": BLOCKS | {"weight_block_size": block}}, shapes)
    role = TensorRole("expert_axis", 0, rows_per_expert=96)
    plain = TensorMap(MoELayout((0,), (4,), top_k=2), {"w1": role}, ("num_experts",))
    return extend_to_parts(plain, view, shapes).roles


def test_scales_of_experts_in_one_matrix_are_cut_at_whole_blocks():
    roles = extend_rows((8, 1), [48, 128])
    assert (roles["w1"].rows_per_expert, roles["w1_scale_inv"].rows_per_expert) == (96, 2)
    assert extend_rows((384, 1), [1, 8])["w1_scale_inv"].rows_per_expert == 96
    assert extend_rows((1, 1), [384, 8])["w1_scale_inv"].kind == "untouched"


@pytest.mark.parametrize(("scales", "block"), [((3, 1), [128, 128]), ((4, 1), [100, 128])])
def test_blocks_across_experts_are_refused(scales, block):
    with pytest.raises(
        UnsupportedModelError, match=r"w1_scale_inv' .* has no whole share for each of the 4 experts"
    ):
        extend_rows(scales, block)


def lists_after(entries, **places):
    """Return module lists after experts 0 and 3 of both layers stay."""
    settings = places or {"modules_to_not_convert": entries}
    config = config_with(BLOCKS | settings)
    tensor_map = derive_tensor_map(config, with_scales(blocks))
    new = update_module_lists(config, tensor_map, dict.fromkeys((0, 1), pruning_groups([0, 3])), frozenset())
    assert {key: value for key, value in new.items() if key != "quantization_config"} == {
        key: value for key, value in config.items() if key != "quantization_config"
    }
    return new["quantization_config"]


def test_names_of_experts_follow_their_new_numbers_in_every_list():
    experts = "model.layers.1.block_sparse_moe.experts"
    before = [f"{experts}.1.w1", f"{experts}.3.w1", f"{experts}.3", "lm_head", r"re:.*experts\.\d+\.w1"]
    after = [f"{experts}.1.w1", f"{experts}.1", "lm_head", r"re:.*experts\.\d+\.w1"]
    groups = {"group_0": {"targets": before, "weights": {"num_bits": 8, "type": "float"}}}
    found = lists_after([], ignored_layers=before, config_groups=groups)
    assert found["ignored_layers"] == after
    assert found["config_groups"]["group_0"] == {"targets": after, "weights": {"num_bits": 8, "type": "float"}}
    assert found["weight_block_size"] == [128, 128]


@pytest.mark.parametrize(
    "entry",
    [
        r"re:.*experts\.3\.w1",
        "block_sparse_moe.experts.3",
        "model.layers.1.block_sparse_moe.experts.9",
        r"re:.*experts.(3|4)\.",
    ],
)
def test_names_of_experts_that_cannot_be_renamed_are_refused(entry):
    with pytest.raises(PlanError, match="list such modules by their full names"):
        lists_after([entry])


def test_shared_experts_are_no_experts():
    assert lists_after(["mlp.shared_experts.0"])["modules_to_not_convert"] == ["mlp.shared_experts.0"]


def test_lists_of_a_nested_config_are_updated():
    entries = ["model.layers.1.block_sparse_moe.experts.3.w1"]
    config = config_with(BLOCKS)
    tensor_map = derive_tensor_map(config, with_scales(blocks))
    nested = {"text_config": {"size": 1, "quantization_config": BLOCKS | {"ignore": entries}}, "width": 2}
    groups = dict.fromkeys((0, 1), pruning_groups([0, 3]))
    new = update_module_lists(nested, tensor_map, groups, frozenset())
    assert new["text_config"]["quantization_config"]["ignore"] == [entries[0].replace("experts.3", "experts.1")]
    assert (new["width"], new["text_config"]["size"]) == (2, 1)
