"""Quantised checkpoints through transformers: pruned by bytes or decoded, they are what one would get in memory."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.families import conftest
from tests.families.quantised_checkpoints import (
    FP8,
    NUM_EXPERTS,
    WIDE,
    dequantise_fp8,
    encode_fp8,
    make_model,
    quantise_mxfp4,
    save,
    unfuse,
    write_config,
)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.errors import PlanError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import CompressionPlan, ExpertGroup, pruning_groups

KEPT = {1: [0, 2, 3, 5, 7], 2: [1, 2, 4, 6, 7]}
ALL_KEPT = {layer: list(range(NUM_EXPERTS)) for layer in KEPT}


def load(folder):
    """Return the model in float32; what a quantised checkpoint has in BF16 comes as that, whatever is asked for."""
    return conftest.load(folder).float()


@pytest.fixture
def partial_blocks(monkeypatch):
    """Let transformers 5.23 load weights whose last block is cut, which its own CPU path refuses or mis-scales."""

    def dequantise(self, quantized, scales, output_dtype=None):
        return dequantise_fp8(quantized, scales).to(output_dtype)

    monkeypatch.setattr(Fp8Dequantize, "_dequantize_one", dequantise)


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    """A DeepSeek-V3 in FP8, with the real latent projection, one layer's experts and a projection left in BF16."""
    model = make_model("deepseek_v3", **WIDE)
    matrices = ("gate_proj", "up_proj", "down_proj")
    keep = [f"model.layers.1.mlp.experts.{e}.{matrix}" for e in range(NUM_EXPERTS) for matrix in matrices]
    keep += ["model.layers.2.self_attn.o_proj"]
    config = write_config(model, quantization_config=FP8 | {"modules_to_not_convert": [*keep, "lm_head"]})
    tensors = encode_fp8(unfuse(model.state_dict()), keep)
    assert tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 1)
    return save(tmp_path_factory.mktemp("fp8") / "model", config, tensors)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """A gpt_oss with experts in MXFP4."""
    model = make_model("gpt_oss", hidden_size=64, intermediate_size=96, num_hidden_layers=3)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = quantise_mxfp4(tensor)
        else:
            tensors[name] = tensor.bfloat16()
    lists = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": lists}
    return save(
        tmp_path_factory.mktemp("mxfp4") / "model", write_config(model, quantization_config=settings), tensors
    )


def rewrite(source, destination, groups, **options):
    index = read_index(source)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    plan = CompressionPlan(tensor_map.layout, tuple(groups), "test")
    planned = plan_rewrite(index, tensor_map, plan, max_shard_bytes=300_000, **options)
    verify_checkpoint(planned.config, planned.shapes)
    write_checkpoint(planned, destination)
    assert read_index(destination).tensors == planned.tensors
    return tensor_map


def read_all(folder):
    tensors = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    return {name: (t.dtype, tuple(t.shape), t.view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}


def slice_in_memory(source, kept):
    """Return the state of the de-quantised model, sliced by hand, with the config that goes with it."""
    model = load(source)
    state = {}
    for name, tensor in model.state_dict().items():
        layer = next((layer for layer in kept if f"layers.{layer}.mlp." in name), None)
        is_indexed = layer is not None and any(f".mlp.{part}." in name for part in ("experts", "gate", "router"))
        state[name] = tensor[kept[layer]] if is_indexed else tensor
    return state


def assert_same_model(folder, expected, tokens):
    """Check tensors, and that logits are those of a model built from them."""
    model = load(folder)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    logits = model(tokens).logits
    model.load_state_dict({name: tensor.clone() for name, tensor in expected.items()})
    assert torch.equal(model(tokens).logits, logits)
    assert logits.isfinite().all()


def test_fp8_is_pruned_by_bytes(deepseek, tmp_path, tokens, partial_blocks):
    tensor_map = rewrite(deepseek, tmp_path / "new", map(pruning_groups, KEPT.values()))
    old, new = read_all(deepseek), read_all(tmp_path / "new")
    expected = {}
    for name, role in tensor_map.roles.items():
        if role.kind == "expert" and role.expert in KEPT[role.layer]:
            place = KEPT[role.layer].index(role.expert)
            expected[name.replace(f".experts.{role.expert}.", f".experts.{place}.")] = old[name]
        elif role.kind == "untouched":
            expected[name] = old[name]
        elif role.kind == "expert_axis":
            dtype, shape, content = old[name]
            size = len(content) // NUM_EXPERTS
            rows = [content[e * size : (e + 1) * size] for e in KEPT[role.layer]]
            expected[name] = (dtype, (len(rows), *shape[1:]), b"".join(rows))
    assert new == expected
    settings = json.loads((tmp_path / "new" / "config.json").read_text())["quantization_config"]
    names = [f"model.layers.1.mlp.experts.{e}.{m}" for e in range(5) for m in ("gate_proj", "up_proj", "down_proj")]
    assert settings == FP8 | {"modules_to_not_convert": [*names, "model.layers.2.self_attn.o_proj", "lm_head"]}
    assert_same_model(tmp_path / "new", slice_in_memory(deepseek, KEPT), tokens)


def test_mxfp4_is_pruned_by_bytes(gpt_oss, tmp_path, tokens):
    kept = {0: [0, 1, 2, 3, 6], **KEPT}
    tensor_map = rewrite(gpt_oss, tmp_path / "new", map(pruning_groups, kept.values()))
    old, new = read_all(gpt_oss), read_all(tmp_path / "new")
    assert old.keys() == new.keys()
    for name, (dtype, shape, content) in old.items():
        role = tensor_map.roles[name]
        if role.kind == "untouched":
            assert new[name] == (dtype, shape, content)
            continue
        size = len(content) // NUM_EXPERTS
        rows = [content[e * size : (e + 1) * size] for e in kept[role.layer]]
        assert new[name] == (dtype, (len(rows), *shape[1:]), b"".join(rows))
    configs = [json.loads((folder / "config.json").read_text()) for folder in (gpt_oss, tmp_path / "new")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert_same_model(tmp_path / "new", slice_in_memory(gpt_oss, kept), tokens)


@pytest.mark.parametrize("kept", [KEPT, ALL_KEPT])
def test_fp8_written_as_bfloat16_is_the_model_transformers_decodes(
    deepseek, tmp_path, tokens, partial_blocks, kept
):
    rewrite(deepseek, tmp_path / "new", map(pruning_groups, kept.values()), weights="bfloat16")
    assert "quantization_config" not in json.loads((tmp_path / "new" / "config.json").read_text())
    dtypes = {name: dtype for name, (dtype, _, _) in read_all(tmp_path / "new").items()}
    assert {name for name, dtype in dtypes.items() if dtype != torch.bfloat16} == {
        f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in KEPT
    }
    expected = {
        name: tensor if "correction_bias" in name else tensor.bfloat16().float()
        for name, tensor in slice_in_memory(deepseek, kept).items()
    }
    assert_same_model(tmp_path / "new", expected, tokens)


def test_mxfp4_written_as_bfloat16_is_the_model_transformers_decodes(gpt_oss, tmp_path, tokens):
    kept = {0: [0, 1, 2, 3, 6], **KEPT}
    rewrite(gpt_oss, tmp_path / "new", map(pruning_groups, kept.values()), weights="bfloat16")
    assert {dtype for dtype, _, _ in read_all(tmp_path / "new").values()} == {torch.bfloat16}
    assert_same_model(tmp_path / "new", slice_in_memory(gpt_oss, kept), tokens)


MEMBERS = [(0,), (2, 5), (3, 7, 6)]
WEIGHTS = [(1.0,), (0.25, 0.75), (0.5, 0.3, 0.2)]
MERGED = tuple(map(ExpertGroup, MEMBERS, WEIGHTS))


@pytest.mark.parametrize("family", ["deepseek", "gpt_oss"])
def test_merging_averages_decoded_experts_and_rounds_once(family, tmp_path, request, partial_blocks):
    source = request.getfixturevalue(family)
    before = load(source).state_dict()
    layers = 2 if family == "deepseek" else 3
    rewrite(source, tmp_path / "new", [MERGED] * layers, weights="bfloat16")
    after = load(tmp_path / "new").state_dict()
    for name, tensor in before.items():
        if ".layers.2.mlp.experts." in name:
            expected = []
            for members, weights in zip(MEMBERS, WEIGHTS, strict=True):
                total = torch.tensor(weights[0]) * tensor[members[0]]
                for member, weight in zip(members[1:], weights[1:], strict=True):
                    total += torch.tensor(weight) * tensor[member]
                expected.append(total.bfloat16().float())
            if name.endswith("bias"):  # not quantised, kept in BF16
                torch.testing.assert_close(after[name], torch.stack(expected), atol=0, rtol=0.01)
            else:
                assert torch.equal(after[name], torch.stack(expected)), name
        elif ".layers.2.mlp.gate.weight" in name or ".layers.2.mlp.router.weight" in name:
            means = torch.stack([tensor[list(members)].mean(0) for members in MEMBERS])
            torch.testing.assert_close(after[name], means, atol=1e-3, rtol=0.01)


@pytest.mark.parametrize("family", ["deepseek", "gpt_oss"])
def test_merging_codes_is_refused(family, tmp_path, request):
    layers = 2 if family == "deepseek" else 3
    with pytest.raises(PlanError, match=r"a mean of codes means nothing; set rewrite\.weights to bfloat16"):
        rewrite(request.getfixturevalue(family), tmp_path / "new", [MERGED] * layers)


def test_experts_that_are_not_quantised_are_merged_where_the_others_are_pruned(deepseek, tmp_path, partial_blocks):
    rewrite(deepseek, tmp_path / "new", [MERGED, pruning_groups([0, 1, 2])])
    name = "model.layers.1.mlp.experts.down_proj"
    old, new = (load(folder).state_dict()[name] for folder in (deepseek, tmp_path / "new"))
    expected = [sum(w * old[m] for m, w in zip(*pair, strict=True)) for pair in zip(MEMBERS, WEIGHTS, strict=True)]
    assert torch.equal(new, torch.stack(expected).bfloat16().float())
