"""A quantised checkpoint collects what the plain one with the same values does, to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_families
from tests.collection.conftest import (
    assert_same_bits,
    layout_of,
    load_plain,
    make_domains,
    read_files,
    run_resident,
    run_streamed,
)

from moe_compress.checkpoint.dequantise import MatrixCode, decode_slabs
from moe_compress.collection.collect import CollectSettings
from moe_compress.collection.dequantise import dequantise
from moe_compress.collection.estimate import Estimate, choose_mode
from moe_compress.errors import CheckpointError, UnsupportedModelError
from moe_compress.types import Encoding

BLOCK = (8, 5)  # 12 rows and 16 columns are no multiples: the last blocks are cut
FP4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)


def tensors_in(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def write(folder, source, tensors, quantisation=None):
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    if quantisation:
        config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def slowly_from_fp8(codes, scales, block):
    values = torch.empty(codes.shape)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            values[row, column] = codes[row, column].float() * scales[row // block[0], column // block[1]].float()
    return values


def slowly_from_mxfp4(codes, scales):
    rows, blocks, size = codes.shape
    values = torch.empty(rows, blocks * size * 2)
    for row in range(rows):
        for block in range(blocks):
            for byte in range(size):
                for half in range(2):
                    code = int(codes[row, block, byte]) >> (4 * half) & 15
                    place = (block * size + byte) * 2 + half
                    values[row, place] = FP4[code] * 2.0 ** (int(scales[row, block]) - 127)
    return values


def fp8_pair(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    grid = (-(-shape[0] // BLOCK[0]), -(-shape[1] // BLOCK[1]))
    return codes, torch.rand(grid, generator=generator) * 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_fp8_is_read_slowly(dtype):
    codes, scales = fp8_pair((12, 16), 0)
    found = dequantise(Encoding("fp8", "w", "s", BLOCK), codes, scales, dtype)
    assert torch.equal(found, slowly_from_fp8(codes, scales, BLOCK).to(dtype))


@pytest.mark.parametrize(("block", "grid"), [((12, 16), (1,)), ((12, 16), ()), ((1, 16), (12,))])
def test_fp8_scales_may_be_one_for_all_or_one_a_row(block, grid):
    codes, _ = fp8_pair((12, 16), 0)
    scales = torch.rand(grid)
    found = dequantise(Encoding("fp8", "w", "s", block), codes, scales, torch.float32)
    assert torch.equal(found, codes.float() * (scales.unsqueeze(-1) if grid == (12,) else scales))


def test_fp8_scales_may_be_exponents():
    codes, _ = fp8_pair((8, 5), 0)
    exponents = torch.tensor([[129]], dtype=torch.uint8)
    for scales in (exponents, exponents.view(torch.float8_e8m0fnu)):
        found = dequantise(Encoding("fp8", "w", "s", BLOCK), codes, scales, torch.float32)
        assert torch.equal(found, codes.float() * 4)


def test_mxfp4_is_read_slowly_and_as_transformers_does():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (2, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 130, (2, 6, 3), generator=generator, dtype=torch.uint8)
    found = dequantise(Encoding("mxfp4", "b", "s", (32, 1)), codes, scales, torch.bfloat16)
    assert torch.equal(found, convert_moe_packed_tensors(codes, scales))
    for expert in range(2):
        slow = slowly_from_mxfp4(codes[expert], scales[expert]).T
        assert torch.equal(found[expert].float(), slow)


def as_the_rewrite_reads(kind, codes, scales, shape, block):
    """Return one matrix as `checkpoint` decodes it when it is written as BF16."""
    names = {
        torch.float8_e4m3fn: "F8_E4M3",
        torch.uint8: "U8",
        torch.float8_e8m0fnu: "F8_E8M0",
        torch.float32: "F32",
        torch.bfloat16: "BF16",
    }
    code = MatrixCode(kind, names[codes.dtype], names[scales.dtype], shape, block)
    stored, factors = (
        value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for value in (codes, scales)
    )
    slabs = decode_slabs(code, lambda offset, length: stored[offset : offset + length], factors)
    with np.errstate(invalid="ignore"):  # torch's own NaN of an exponent is a signalling one
        return torch.from_numpy(np.concatenate(list(slabs)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu, torch.bfloat16, torch.float32])
def test_mxfp4_is_what_the_rewrite_reads_whatever_its_scales_are_stored_as(dtype):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (2, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 130, (2, 6, 3), generator=generator, dtype=torch.uint8)
    scales[0, 0] = torch.tensor([0, 252, 255])  # the smallest, a large one, and what is no number
    scales = scales.view(torch.float8_e8m0fnu).to(dtype) if dtype.itemsize > 1 else scales.view(dtype)
    found = dequantise(Encoding("mxfp4", "b", "s", (32, 1)), codes, scales, torch.float32)
    for expert in range(2):
        expected = as_the_rewrite_reads("mxfp4", codes[expert], scales[expert], (96, 6), (32, 1))
        torch.testing.assert_close(found[expert], expected, rtol=0, atol=0, equal_nan=True)
    assert found[1].abs().max() > 0


@pytest.mark.parametrize(
    ("block", "scales"), [((12, 16), (3,)), ((12, 16), ()), (BLOCK, (3, 2, 4)), ((12, 16), (1,))]
)
def test_fused_fp8_experts_are_what_the_rewrite_reads(block, scales):
    codes = fp8_pair((36, 16), 0)[0].reshape(3, 12, 16)
    factors = torch.rand(scales)
    found = dequantise(Encoding("fp8", "w", "s", block), codes, factors, torch.float32)
    for expert in range(3):
        own = factors[expert] if scales[:1] == (3,) else factors
        assert torch.equal(found[expert], as_the_rewrite_reads("fp8", codes[expert], own, (12, 16), block))


@pytest.mark.parametrize(
    ("kind", "codes", "scales"),
    [("mxfp4", torch.uint8, torch.int32), ("mxfp4", torch.int8, torch.uint8), ("fp8", torch.int8, torch.float32)],
)
def test_codes_and_scales_of_other_dtypes_are_refused(kind, codes, scales):
    shape = (32, 16) if kind == "fp8" else (32, 1, 16)
    with pytest.raises(CheckpointError, match=rf"'codes' is stored as {codes}.* with {scales}.* scales.*no {kind}"):
        dequantise(
            Encoding(kind, "codes", "scales", (32, 16)),
            torch.ones(shape, dtype=codes),
            torch.ones(32, 1, dtype=scales) if kind == "mxfp4" else torch.ones(1, 1, dtype=scales),
            torch.float32,
        )


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_an_fp8_checkpoint_collects_what_its_values_do(checkpoint, tmp_path, family):
    source = checkpoint(family)
    plain, stored = tensors_in(source), {}
    for number, (name, value) in enumerate(sorted(plain.items())):
        if value.dim() == 2 and "_proj" in name:
            stored[name], stored[f"{name}_scale_inv"] = fp8_pair(value.shape, number)
            plain[name] = slowly_from_fp8(stored[name], stored[f"{name}_scale_inv"], BLOCK)
        else:
            stored[name] = value
    settings = {"quant_method": "fp8", "weight_block_size": list(BLOCK), "activation_scheme": "dynamic"}
    quantised = write(tmp_path / "fp8", source, stored, settings)
    check(family, quantised, write(tmp_path / "plain", source, plain))


def test_an_mxfp4_checkpoint_collects_what_its_values_do(tmp_path):
    source = tmp_path / "source"
    tiny_families.save("gpt_oss", source, hidden_size=32, intermediate_size=32)
    plain, stored = tensors_in(source), {}
    generator = torch.Generator().manual_seed(1)
    for name, value in sorted(plain.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = value.shape
            codes = torch.randint(
                0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8
            )
            scales = torch.randint(120, 126, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = codes, scales
            slow = [slowly_from_mxfp4(c, s).T for c, s in zip(codes, scales, strict=True)]
            plain[name] = torch.stack(slow).contiguous()
        else:
            stored[name] = value
    quantised = write(tmp_path / "mxfp4", source, stored, {"quant_method": "mxfp4"})
    check("gpt_oss", quantised, write(tmp_path / "plain", source, plain))


def check(family, quantised, plain):
    domains = make_domains()
    model = load_plain(family, plain, torch.float32)
    files = read_files(quantised)
    found, streamed = run_streamed(files, layout_of(model), domains)
    assert_same_bits(found, run_resident(model, layout_of(model), domains))
    assert streamed.reader.num_bytes <= sum(info.num_bytes for info in files.tensors.values())
    resident = Estimate("resident", 1, 1, 1, 1, 1, 1.0)
    assert choose_mode("auto", resident, torch.device("cpu"), files)[0] == "streamed"


def test_a_format_that_is_not_decoded_is_collected_resident_or_refused(checkpoint, tmp_path):
    source = checkpoint("qwen3_moe")
    stored = {}
    for name, value in tensors_in(source).items():
        if ".mlp.experts." in name:
            packed = name.replace(".weight", ".weight_packed")
            stored[packed] = torch.zeros(value.shape[0], value.shape[1] // 8, dtype=torch.int32)
            stored[name.replace(".weight", ".weight_scale")] = torch.ones(value.shape[0], 1)
        else:
            stored[name] = value
    groups = {"group_0": {"weights": {"num_bits": 4, "type": "int"}, "targets": ["Linear"]}}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    files = read_files(write(tmp_path / "int4", source, stored, settings))
    resident = Estimate("resident", 1, 1, 1, 1, 1, 1.0)
    assert choose_mode("auto", resident, torch.device("cpu"), files)[0] == "resident"
    assert CollectSettings().mode == "auto"
    with pytest.raises(UnsupportedModelError, match="47 other weights are stored in a format that is not decoded"):
        choose_mode("streamed", resident, torch.device("cpu"), files)
