"""Layers for multi-token prediction are pruned like the last MoE layer or dropped, and never left half-way."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tests.families.quantised_checkpoints import FP8, encode_fp8, make_model, save, unfuse, write_config
from tests.tiny_configs import NUM_EXPERTS
from tests.tiny_families import load
from transformers import CONFIG_MAPPING
from transformers.modeling_layers import MtpModel

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.errors import PlanError, UnsupportedModelError
from moe_compress.families.building import build_meta_model
from moe_compress.families.conversion import shapes_in_memory
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import CompressionPlan, ExpertGroup, pruning_groups

DEPTH = 46  # GLM-4.5-Air's, because transformers knows the layer after the last by its number
LAST = f"model.layers.{DEPTH - 1}."
AFTER = f"model.layers.{DEPTH}."
KEPT = [1, 2, 4, 7]


def add_layer(tensors, size):
    """Return tensors with a layer for multi-token prediction after the last: a block, norms, projections."""
    generator = torch.Generator().manual_seed(5)
    extra = {
        name.replace(LAST, AFTER): torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
        if name.startswith(LAST)
    }
    extra |= {f"{AFTER}{name}.weight": torch.ones(size) for name in ("enorm", "hnorm", "shared_head.norm")}
    extra[f"{AFTER}eh_proj.weight"] = torch.randn(size, 2 * size, generator=generator)
    extra[f"{AFTER}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    extra[f"{AFTER}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return tensors | extra


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    """A GLM of 46 layers, the last one sparse, and the layer after it."""
    model = make_model("glm4_moe", num_hidden_layers=DEPTH, first_k_dense_replace=DEPTH - 1)
    tensors = add_layer(unfuse(model.state_dict()), 16)
    return save(tmp_path_factory.mktemp("glm") / "model", write_config(model, num_nextn_predict_layers=1), tensors)


def rewrite(source, destination, groups, **options):
    index = read_index(source)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    planned = plan_rewrite(index, tensor_map, CompressionPlan(tensor_map.layout, (groups,), "test"), **options)
    verify_checkpoint(planned.config, planned.shapes)
    write_checkpoint(planned, destination)
    return read_all(destination), json.loads((destination / "config.json").read_text())


def read_all(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def slice_by_hand(tensors, kept):
    """Return the tensors with experts kept in order, renumbered, and router rows and correction biases cut."""
    expected = {}
    for name, tensor in tensors.items():
        if match := re.search(r"\.experts\.(\d+)\.", name):
            if int(match[1]) in kept:
                expected[name.replace(match[0], f".experts.{kept.index(int(match[1]))}.")] = tensor
        else:
            expected[name] = tensor[kept] if ".mlp.gate." in name else tensor
    return expected


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def test_the_layer_follows_the_last_ones_plan(glm, tmp_path):
    found, config = rewrite(glm, tmp_path / "new", pruning_groups(KEPT))
    assert_same(found, slice_by_hand(read_all(glm), KEPT))
    assert (config["num_nextn_predict_layers"], config["n_routed_experts"]) == (1, 4)


def test_transformers_builds_the_pruned_layer_from_the_pruned_checkpoint(glm, tmp_path):
    found, _ = rewrite(glm, tmp_path / "new", pruning_groups(KEPT))
    main = load("glm4_moe", tmp_path / "new")
    layer = MtpModel.from_pretrained(main).state_dict()  # raises if a tensor is missing
    block = "layers.0.mtp_block.mlp"
    for new in range(len(KEPT)):
        stem = f"{AFTER}mlp.experts.{new}"
        halves = [found[f"{stem}.gate_proj.weight"], found[f"{stem}.up_proj.weight"]]
        assert torch.equal(layer[f"{block}.experts.gate_up_proj"][new], torch.cat(halves))
        assert torch.equal(layer[f"{block}.experts.down_proj"][new], found[f"{stem}.down_proj.weight"])
    assert torch.equal(layer[f"{block}.gate.weight"], found[f"{AFTER}mlp.gate.weight"])
    assert layer[f"{block}.experts.down_proj"].shape[0] == len(KEPT)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A DeepSeek-V3 of three layers and one after them, a depth that transformers' class does not name."""
    model = make_model("deepseek_v3", num_hidden_layers=3, first_k_dense_replace=2)
    tensors = unfuse(model.state_dict())
    tensors |= {name.replace("layers.2.", "layers.3."): -t for name, t in tensors.items() if "layers.2." in name}
    tensors |= {f"model.layers.3.{name}.weight": torch.ones(16) for name in ("enorm", "hnorm", "shared_head.norm")}
    return save(
        tmp_path_factory.mktemp("short") / "model", write_config(model, num_nextn_predict_layers=1), tensors
    )


def test_a_layer_at_a_depth_of_its_own_is_known_by_the_configs_count(short, tmp_path):
    found, config = rewrite(short, tmp_path / "new", pruning_groups(KEPT))
    assert_same(found, slice_by_hand(read_all(short), KEPT))
    assert (config["num_nextn_predict_layers"], config["n_routed_experts"]) == (1, 4)
    dropped, config = rewrite(short, tmp_path / "dropped", pruning_groups(KEPT), mtp="drop")
    assert_same(dropped, {name: t for name, t in found.items() if not name.startswith("model.layers.3.")})
    assert config["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize("count", [0, "1", [1], None])
def test_a_layer_behind_those_that_the_config_counts_is_refused(short, count):
    index = read_index(short)
    config = index.config | {"num_nextn_predict_layers": count}
    with pytest.raises(UnsupportedModelError, match=r"unexpected \(model\.layers\.3\."):
        derive_tensor_map(config, index.shapes)


def test_merging_averages_the_layers_own_experts(glm, tmp_path):
    groups = (ExpertGroup((0, 3), (0.25, 0.75)), *pruning_groups([1, 2]))
    found, _ = rewrite(glm, tmp_path / "new", groups)
    old = read_all(glm)
    name = f"{AFTER}mlp.experts.%d.up_proj.weight"
    torch.testing.assert_close(found[name % 0], 0.25 * old[name % 0] + 0.75 * old[name % 3])
    gate = f"{AFTER}mlp.gate.weight"
    torch.testing.assert_close(found[gate][0], (old[gate][0] + old[gate][3]) / 2)


def test_dropped_the_layer_is_gone_and_the_config_says_so(glm, tmp_path):
    found, config = rewrite(glm, tmp_path / "new", pruning_groups(KEPT), mtp="drop")
    old = {name: tensor for name, tensor in read_all(glm).items() if not name.startswith(AFTER)}
    assert_same(found, slice_by_hand(old, KEPT))
    assert config["num_nextn_predict_layers"] == 0
    load("glm4_moe", tmp_path / "new")


def test_codes_and_scales_of_the_layer_are_pruned_too(tmp_path):
    depth = 61
    model = make_model(
        "deepseek_v3", num_hidden_layers=depth, first_k_dense_replace=depth - 1, num_nextn_predict_layers=1
    )
    tensors = unfuse(model.state_dict())
    last, after = f"model.layers.{depth - 1}.", f"model.layers.{depth}."
    tensors |= {name.replace(last, after): -tensor for name, tensor in tensors.items() if name.startswith(last)}
    tensors |= {f"{after}{name}.weight": torch.ones(16) for name in ("enorm", "hnorm", "shared_head.norm")}
    lists = [f"{after}mlp.gate", f"{after}eh_proj", "lm_head"]
    config = write_config(model, quantization_config=FP8 | {"modules_to_not_convert": lists})
    source = save(tmp_path / "source", config, encode_fp8(tensors))
    assert f"{after}mlp.experts.7.up_proj.weight_scale_inv" in read_all(source)
    found, new_config = rewrite(source, tmp_path / "new", pruning_groups(KEPT))
    assert_same(found, slice_by_hand(read_all(source), KEPT))
    assert new_config["quantization_config"] == config["quantization_config"]
    decoded, new_config = rewrite(source, tmp_path / "decoded", pruning_groups(KEPT), weights="bfloat16")
    assert decoded.keys() == {name for name in found if "scale_inv" not in name}
    name = f"{after}mlp.experts.3.up_proj.weight"  # one block, one scale
    assert torch.equal(decoded[name], (found[name].float() * found[f"{name}_scale_inv"]).bfloat16())
    found, new_config = rewrite(source, tmp_path / "dropped", pruning_groups(KEPT), mtp="drop")
    assert not [name for name in found if name.startswith(after)]
    # What names a tensor that is gone goes; `eh_proj` named none before either.
    kept_lists = [f"{after}eh_proj", "lm_head"]
    assert new_config["quantization_config"]["modules_to_not_convert"] == kept_lists


def qwen(experts_on_disk, **changes):
    """Return config and shapes of a tiny Qwen3-Next with a layer under `mtp.`, which the config does not count."""
    config = CONFIG_MAPPING["qwen3_next"](
        num_hidden_layers=2, hidden_size=16, num_experts=4, num_experts_per_tok=2, vocab_size=32, head_dim=8,
        moe_intermediate_size=8, intermediate_size=8, shared_expert_intermediate_size=8, num_attention_heads=2,
        num_key_value_heads=2, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8,
    ).to_dict()  # fmt: skip
    shapes = shapes_in_memory(build_meta_model(config))
    last = "model.layers.1."
    extra = {f"mtp.layers.0.{name.removeprefix(last)}": s for name, s in shapes.items() if name.startswith(last)}
    extra |= {"mtp.fc.weight": (16, 32), "mtp.norm.weight": (16,), "mtp.pre_fc_norm_hidden.weight": (16,)}
    if experts_on_disk == "numbered":
        del extra["mtp.layers.0.mlp.experts.gate_up_proj"], extra["mtp.layers.0.mlp.experts.down_proj"]
        for expert in range(4):
            stem = f"mtp.layers.0.mlp.experts.{expert}"
            extra |= {f"{stem}.{name}_proj.weight": (8, 16) for name in ("gate", "up")}
            extra[f"{stem}.down_proj.weight"] = (16, 8)
    return config | changes, shapes | extra


@pytest.mark.parametrize("experts_on_disk", ["fused", "numbered"])
def test_a_layer_beside_the_stack_is_known_with_fused_and_with_numbered_experts(experts_on_disk):
    config, shapes = qwen(experts_on_disk)
    found = derive_tensor_map(config, shapes)
    assert (found.mtp_problem, found.mtp_keys) == (None, ("num_nextn_predict_layers",))
    assert found.mtp_tensors == {name for name in shapes if name.startswith("mtp.")}
    stem = "mtp.layers.0.mlp."
    roles = {name: role for name, role in found.roles.items() if name.startswith("mtp.") and role.layer == 1}
    experts = {name for name in shapes if name.startswith(f"{stem}experts.")}
    assert roles.keys() == {f"{stem}gate.weight"} | experts
    assert roles[f"{stem}gate.weight"].is_router
    if experts_on_disk == "numbered":
        name = f"{stem}experts.2.up_proj.weight"
        assert (roles[name].kind, roles[name].expert) == ("expert", 2)
        assert found.rename(name, 11) == f"{stem}experts.11.up_proj.weight"


def test_a_number_of_none_is_left_as_it_is():
    config, shapes = qwen("fused", mtp_num_hidden_layers=0)
    assert derive_tensor_map(config, shapes).mtp_keys == ()


@pytest.mark.parametrize("key", ["mtp_num_hidden_layers", "num_mtp_modules"])
def test_the_number_of_layers_is_found_under_each_name_it_has(key):
    config, shapes = qwen("fused", **{key: 1})
    assert derive_tensor_map(config, shapes).mtp_keys == (key,)


def test_the_number_a_family_would_assume_is_written_out_and_a_nested_one_found(glm):
    index = read_index(glm)
    silent = {key: value for key, value in index.config.items() if key != "num_nextn_predict_layers"}
    assert derive_tensor_map(silent, index.shapes).mtp_keys == ("num_nextn_predict_layers",)
    nested = silent | {"mtp_config": {"num_nextn_predict_layers": 1}}
    assert derive_tensor_map(nested, index.shapes).mtp_keys == ("mtp_config.num_nextn_predict_layers",)


def test_a_layer_without_experts_stays_as_it_is(glm):
    index = read_index(glm)
    dense = {name: shape for name, shape in index.shapes.items() if not name.startswith(f"{AFTER}mlp.")}
    dense[f"{AFTER}mlp.up_proj.weight"] = (32, 16)
    found = derive_tensor_map(index.config, dense)
    assert found.mtp_problem is None
    assert {found.roles[name].kind for name in found.mtp_tensors} == {"untouched"}


def other_layers(index):
    """Yield shapes whose layer after the last is not like the last, and what is said about it."""
    experts = f"{AFTER}mlp.experts."
    shapes = index.shapes
    fewer = {name: shape for name, shape in shapes.items() if not name.startswith(f"{experts}7.")}
    yield fewer, r"experts\.\*\.down_proj\.weight' is there for 7 experts and the model has 8"
    yield (
        shapes | {f"{AFTER}mlp.gate.weight": (6, 16)},
        r"1 of their tensors are not like layer 45's: .*gate\.weight",
    )
    yield shapes | {f"{experts}scale": (8,)}, r"1 of their tensors are not like layer 45's: .*experts\.scale"
    no_router = {name: shape for name, shape in shapes.items() if name != f"{AFTER}mlp.gate.weight"}
    yield no_router, r"lack 1 tensors of layer 45: model\.layers\.46\.mlp\.gate\.weight"
    no_up = {name: s for name, s in shapes.items() if not (name.startswith(experts) and "up_proj" in name)}
    yield no_up, r"lack 1 tensors of layer 45: model\.layers\.46\.\*\.up_proj\.weight"


@pytest.mark.parametrize("number", range(5))
def test_a_layer_unlike_the_last_is_dropped_or_nothing(glm, number):
    index = read_index(glm)
    shapes, words = list(other_layers(index))[number]
    found = derive_tensor_map(index.config, shapes)
    assert re.search(words, found.mtp_problem)
    assert {found.roles[name].kind for name in found.mtp_tensors} == {"untouched"}


def test_pruning_beside_a_layer_unlike_the_last_is_refused_and_dropping_it_is_not(glm):
    index = read_index(glm)
    tensors = {name: info for name, info in index.tensors.items() if not name.startswith(f"{AFTER}mlp.experts.7.")}
    partial = type(index)(index.folder, index.config, tensors)
    tensor_map = derive_tensor_map(index.config, partial.shapes)
    plan = CompressionPlan(tensor_map.layout, (pruning_groups(KEPT),), "test")
    with pytest.raises(
        PlanError, match=r"multi-token-prediction layers cannot be pruned.*set rewrite\.mtp to drop"
    ):
        plan_rewrite(partial, tensor_map, plan)
    assert not any(name.startswith(AFTER) for name in plan_rewrite(partial, tensor_map, plan, mtp="drop").tensors)
    everything = CompressionPlan(tensor_map.layout, (pruning_groups(range(NUM_EXPERTS)),), "test")
    assert plan_rewrite(partial, tensor_map, everything).tensors.keys() == tensors.keys()


def test_experts_that_are_passed_over_elsewhere_are_refused(glm):
    index = read_index(glm)
    config = index.config | {"num_hidden_layers": 48}  # so that 46 is a layer of the stack, with a tensor too many
    shapes = {name: shape for name, shape in index.shapes.items() if not name.startswith(AFTER)}
    for layer in (46, 47):
        shapes |= {
            name.replace(LAST, f"model.layers.{layer}."): s for name, s in shapes.items() if name.startswith(LAST)
        }
    assert derive_tensor_map(config, shapes).mtp_tensors == frozenset()
    with pytest.raises(UnsupportedModelError, match=r"1 tensors hold experts .*experts\.odd"):
        derive_tensor_map(config, shapes | {f"{AFTER}mlp.experts.odd": (8,)})
