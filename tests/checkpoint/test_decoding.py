"""A quantised weight written as BF16: which codes go where, and what is refused before a byte is written."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.errors import CheckpointError, PlanError
from moe_compress.types import (
    CompressionPlan,
    Encoding,
    ExpertGroup,
    MoELayout,
    TensorMap,
    TensorRole,
    pruning_groups,
)

EXPERTS = 3
CONFIG = {"num_experts": EXPERTS, "quantization_config": {"quant_method": "fp8", "ignore": ["experts.2.up"]}}


def make_tensors():
    """Return one matrix per expert, one for all experts below each other, and one that is nobody's, all in FP8."""
    generator = torch.Generator().manual_seed(0)

    def codes(*shape):
        return torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)

    tensors = {"layers.0.gate": torch.randn(EXPERTS, 4, generator=generator), "attention": codes(6, 4)}
    tensors["attention_scale"] = torch.rand(3, 2, generator=generator)  # blocks of 2 x 3, the last ones cut
    tensors["attention_input"] = torch.ones(1)
    tensors |= {"layers.0.fused": codes(4 * EXPERTS, 4), "layers.0.fused_scale": torch.rand(2 * EXPERTS, 2)}
    for expert in range(EXPERTS):
        tensors[f"layers.0.experts.{expert}.up"] = codes(4, 5)
        tensors[f"layers.0.experts.{expert}.up_scale"] = torch.rand(1, generator=generator)
    return tensors


def make_map():
    roles = {name: TensorRole("untouched") for name in ("attention", "attention_scale", "attention_input")}
    roles["layers.0.gate"] = TensorRole("expert_axis", 0, is_router=True)
    roles["layers.0.fused"] = TensorRole("expert_axis", 0, rows_per_expert=4)
    roles["layers.0.fused_scale"] = TensorRole("expert_axis", 0, rows_per_expert=2)
    encodings = {
        "attention": Encoding("fp8", "attention", "attention_scale", (2, 3)),
        "layers.0.fused": Encoding("fp8", "layers.0.fused", "layers.0.fused_scale", (2, 3)),
    }
    spans = {}
    for expert in range(EXPERTS):
        name = f"layers.0.experts.{expert}.up"
        encodings[name] = Encoding("fp8", name, f"{name}_scale", (4, 5))
        for part in (name, f"{name}_scale"):
            roles[part], spans[part] = TensorRole("expert", 0, expert), (17, 18)
    parts = {part: weight for weight, found in encodings.items() for part in (found.codes, found.scales)}
    parts["attention_input"] = "attention"
    layout = MoELayout((0,), (EXPERTS,), top_k=1)
    return TensorMap(layout, roles, ("num_experts",), spans, encodings=encodings, parts=parts)


def decode(tensors, name, rows=None):
    """Return a weight in float32, its scale looked up value by value."""
    codes, scales = tensors[name].float(), tensors[f"{name}_scale"]
    block = (4, 5) if name.endswith(".up") else (2, 3)
    scales = scales.reshape(-1, -(-codes.shape[1] // block[1]))
    for i in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            codes[i, j] *= scales[i // block[0], j // block[1]]
    return codes


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(make_tensors(), folder / "model.safetensors")
    return folder


def plan_for(source, *groups, tensor_map=None, **options):
    made = tuple(group if not isinstance(group, int) else pruning_groups([group])[0] for group in groups)
    tensor_map = tensor_map or make_map()
    return plan_rewrite(
        read_index(source), tensor_map, CompressionPlan(tensor_map.layout, (made,), "test"), **options
    )


@pytest.mark.parametrize("weights", ["keep", "bfloat16"])
def test_codes_without_scales_are_refused(source, weights):
    tensor_map = make_map()
    parts = {name: weight for name, weight in tensor_map.parts.items() if not weight.endswith("1.up")}
    encodings = {weight: found for weight, found in tensor_map.encodings.items() if not weight.endswith("1.up")}
    partial = replace(tensor_map, parts=parts, encodings=encodings)
    with pytest.raises(CheckpointError, match=r"experts\.1\.up' in model\.safetensors is .*F8_E4M3 without scales"):
        plan_for(source, 0, 1, tensor_map=partial, weights=weights)


def test_every_weight_is_decoded_and_every_other_part_is_gone(source, tmp_path):
    merged = ExpertGroup((0, 1), (0.25, 0.75))
    rewrite = plan_for(source, 2, merged, weights="bfloat16")
    write_checkpoint(rewrite, tmp_path / "new")
    old, new = load_file(source / "model.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"num_experts": 2}
    ups = [decode(old, f"layers.0.experts.{expert}.up") for expert in range(EXPERTS)]
    fused = decode(old, "layers.0.fused").reshape(EXPERTS, 4, 4)
    gate = old["layers.0.gate"]
    expected = {
        "attention": decode(old, "attention").bfloat16(),
        "layers.0.experts.0.up": ups[2].bfloat16(),
        "layers.0.experts.1.up": (0.25 * ups[0] + 0.75 * ups[1]).bfloat16(),
        "layers.0.fused": torch.cat([fused[2], 0.25 * fused[0] + 0.75 * fused[1]]).bfloat16(),
        "layers.0.gate": torch.stack([gate[2], (gate[0] + gate[1]) / 2]),
    }
    assert new.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(new[name], tensor), name
    assert rewrite.num_bytes == (tmp_path / "new" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("weights", "travels"), [("keep", True), ("bfloat16", False)])
def test_what_tells_the_quantisation_a_second_time_goes_with_it(source, tmp_path, weights, travels):
    (source / "hf_quant_config.json").write_text("{}")
    (source / "config.json").write_text(json.dumps({"num_experts": EXPERTS}))
    write_checkpoint(plan_for(source, 0, 2, weights=weights), tmp_path / "new")
    assert (tmp_path / "new" / "hf_quant_config.json").exists() == travels


def test_kept_bytes_and_lists_without_decoding(source, tmp_path):
    with pytest.raises(PlanError, match=r"'experts\.2\.up', which cannot follow"):
        plan_for(source, 0, 2)
    assert plan_for(source, 0, 2, weights="bfloat16").config == {"num_experts": 2}


def test_a_plain_checkpoint_is_the_same_in_either_mode(source):
    plain = replace(make_map(), encodings={}, parts={})
    (source / "config.json").write_text(json.dumps({"num_experts": EXPERTS}))
    kept, written = (plan_for(source, 0, 2, tensor_map=plain, weights=w) for w in ("keep", "bfloat16"))
    assert kept == written


def test_merging_codes_is_refused(source):
    with pytest.raises(PlanError, match=r"a mean of codes means nothing; set rewrite\.weights to bfloat16"):
        plan_for(source, ExpertGroup((0, 1), (0.5, 0.5)), 2)


def test_a_format_that_is_not_decoded_is_refused(source):
    tensor_map = make_map()
    known = {name: code for name, code in tensor_map.encodings.items() if name != "attention"}
    with pytest.raises(
        PlanError, match="1 weights are stored in a format that is not decoded here, first 'attention'"
    ):
        plan_for(source, 0, 2, tensor_map=replace(tensor_map, encodings=known), weights="bfloat16")


def test_merging_a_quantised_expert_with_one_that_is_not_is_refused(source):
    tensor_map = make_map()
    odd = "layers.0.experts.1.up"
    save_file(make_tensors() | {odd: torch.ones(4, 5, dtype=torch.bfloat16)}, source / "model.safetensors")
    encodings = {name: code for name, code in tensor_map.encodings.items() if name != odd}
    parts = {part: weight for part, weight in tensor_map.parts.items() if weight != odd}
    mixed = replace(tensor_map, encodings=encodings, parts=parts)
    with pytest.raises(PlanError, match=f"'{odd}' is not quantised and would be merged"):
        plan_for(source, ExpertGroup((0, 1), (0.5, 0.5)), 2, tensor_map=mixed, weights="bfloat16")
    save_file(make_tensors() | {odd: torch.zeros(4, 5, dtype=torch.bfloat16)}, source / "model.safetensors")
    with pytest.raises(PlanError, match=f"'{odd}' .BF16 .* would be averaged with .*0.up' .F8_E4M3"):
        plan_for(source, 2, ExpertGroup((1, 0), (0.5, 0.5)), tensor_map=mixed, weights="bfloat16")


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": torch.zeros(6, 4)},  # no codes
        {"attention_scale": torch.zeros(3, 2, dtype=torch.int32)},
        {"attention_scale": torch.zeros(2, 2)},
    ],
)
def test_codes_and_scales_that_are_not_what_the_config_says(source, changes):
    save_file(make_tensors() | changes, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'attention' is stored as .* no fp8 of blocks \[2, 3\]"):
        plan_for(source, 0, 2, weights="bfloat16")
