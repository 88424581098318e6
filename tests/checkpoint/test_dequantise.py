"""Decoding against slow readings of the formats' definitions, torch's own float8, and transformers' MXFP4."""

import math
import struct

import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moe_compress.checkpoint import dequantise
from moe_compress.checkpoint.arithmetic import encode_floats
from moe_compress.checkpoint.dequantise import FP8_VALUES, MatrixCode, decode_scales, decode_slabs

TORCH = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def read_fp8(byte, exponent_bits, mantissa_bits, has_infinity):
    """Return a byte's value, read bit by bit."""
    bias = 2 ** (exponent_bits - 1) - 1
    sign = -1.0 if byte & 128 else 1.0
    exponent, mantissa = (byte & 127) >> mantissa_bits, byte & (2**mantissa_bits - 1)
    if exponent == 2**exponent_bits - 1 and has_infinity:
        return sign * math.inf if mantissa == 0 else math.nan
    if byte & 127 == 127 and not has_infinity:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 2**mantissa_bits * 2.0 ** (1 - bias)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


def decode(code, codes, scales):
    slabs = list(decode_slabs(code, lambda offset, length: codes[offset : offset + length], scales))
    return np.concatenate(slabs)


@pytest.mark.parametrize(("dtype", "bits"), [("F8_E4M3", (4, 3, False)), ("F8_E5M2", (5, 2, True))])
def test_every_byte_has_the_value_the_format_says_and_torch_reads(dtype, bits):
    slow = np.array([read_fp8(byte, *bits) for byte in range(256)], dtype=np.float32)
    theirs = torch.arange(256, dtype=torch.uint8).view(TORCH[dtype]).float().numpy()
    np.testing.assert_array_equal(FP8_VALUES[dtype], slow)
    np.testing.assert_array_equal(FP8_VALUES[dtype], theirs)
    assert np.signbit(FP8_VALUES[dtype][0x80])  # minus zero


def test_every_power_of_two_scale():
    with np.errstate(over="ignore"):
        slow = [math.nan if byte == 255 else 2.0 ** (byte - 127) for byte in range(256)]
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).float().numpy()
    for dtype in ("F8_E8M0", "U8"):
        found = decode_scales(bytes(range(256)), dtype)
        np.testing.assert_array_equal(found, np.array(slow, dtype=np.float32))
        np.testing.assert_array_equal(found, theirs)


@pytest.mark.parametrize("values_at_a_time", [1, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("shape", "block", "scale_dtype"),
    [
        ((576, 200), (128, 128), "F32"),  # five rows of blocks, the last one of 64; two columns, the last of 72
        ((6, 5), (1, 5), "BF16"),  # one scale a row
        ((6, 5), (6, 5), "F16"),  # one scale
        ((4, 64), (1, 32), "F8_E8M0"),
    ],
)
def test_fp8_blocks_against_a_loop(monkeypatch, shape, block, scale_dtype, values_at_a_time):
    monkeypatch.setattr(dequantise, "_VALUES", values_at_a_time)
    generator = np.random.default_rng(0)
    code = MatrixCode("fp8", "F8_E4M3", scale_dtype, shape, block)
    codes = generator.integers(0, 127, shape).astype(np.uint8)  # no NaN
    if scale_dtype == "F8_E8M0":
        scales = generator.integers(100, 150, code.grid).astype(np.uint8).tobytes()
    else:
        scales = encode_floats(generator.random(code.grid, dtype=np.float32), scale_dtype)
    grid = decode_scales(scales, scale_dtype).reshape(code.grid)
    expected = np.empty(shape, dtype=np.float32)
    for row in range(shape[0]):
        for column in range(shape[1]):
            scale = grid[row // block[0], column // block[1]]
            expected[row, column] = np.float32(read_fp8(int(codes[row, column]), 4, 3, False)) * scale
    np.testing.assert_array_equal(decode(code, codes.tobytes(), scales), expected)


def test_block_scales_against_torch():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(256, 384, generator=generator)
    scales = torch.rand(2, 3, generator=generator) / 100
    codes = (weight * 100).to(torch.float8_e4m3fn)
    blocks = codes.float().reshape(2, 128, 3, 128) * scales[:, None, :, None]
    code = MatrixCode("fp8", "F8_E4M3", "F32", (256, 384), (128, 128))
    found = decode(code, codes.view(torch.uint8).numpy().tobytes(), scales.numpy().tobytes())
    np.testing.assert_array_equal(found, blocks.reshape(256, 384).numpy())
    theirs = blocks.reshape(256, 384).bfloat16().view(torch.uint8).numpy().tobytes()
    assert encode_floats(found, "BF16") == theirs


def make_mxfp4(experts=2, rows=6, groups=3):
    generator = np.random.default_rng(2)
    codes = generator.integers(0, 256, (experts, rows, groups, 16)).astype(np.uint8)
    scales = generator.integers(110, 140, (experts, rows, groups)).astype(np.uint8)
    return codes, scales


@pytest.mark.parametrize("values_at_a_time", [1, 6 * 64, 1 << 20])
def test_mxfp4_against_transformers(monkeypatch, values_at_a_time):
    monkeypatch.setattr(dequantise, "_VALUES", values_at_a_time)
    codes, scales = make_mxfp4()
    theirs = convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(scales), dtype=torch.bfloat16)
    code = MatrixCode("mxfp4", "U8", "U8", (96, 6), (32, 1))
    assert (code.grid, code.num_code_bytes) == ((3, 6), codes[0].nbytes)
    for expert in range(2):
        found = decode(code, codes[expert].tobytes(), scales[expert].tobytes())
        np.testing.assert_array_equal(found, theirs[expert].float().numpy())


def test_mxfp4_against_its_definition():
    codes, scales = make_mxfp4(experts=1)
    found = decode(MatrixCode("mxfp4", "U8", "U8", (96, 6), (32, 1)), codes.tobytes(), scales.tobytes())
    for row in range(96):
        for column in range(6):
            group, place = divmod(row, 32)
            byte = int(codes[0, column, group, place // 2])
            half = byte >> 4 if place % 2 else byte & 15
            exponent, mantissa = (
                (half >> 1) & 3,
                half & 1,
            )  # sign, two bits of exponent with bias 1, one of mantissa
            value = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
            value *= 2.0 ** (int(scales[0, column, group]) - 127) * (-1 if half & 8 else 1)
            assert struct.pack("<f", found[row, column]) == struct.pack("<f", value)
