"""Averages of raw bytes against torch, which rounds by the same rule."""

import numpy as np
import pytest
import torch

from moe_compress.checkpoint.arithmetic import average_bytes

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def to_bytes(tensor):
    return tensor.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_mean_is_torchs_in_float32(dtype):
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(999, generator=generator).to(DTYPES[dtype]) for _ in range(3)]
    weights = [0.2, 0.5, 0.3]
    expected = sum(w * part.float() for w, part in zip(weights, parts, strict=True)).to(DTYPES[dtype])
    assert average_bytes([to_bytes(part) for part in parts], weights, dtype) == to_bytes(expected)


def test_halfway_cases_round_to_even():
    # 1 and 1 + 2**-7 are neighbours in bfloat16; their mean lies halfway and goes to the even one, 1.
    low, high, next_high = (torch.tensor([1 + n * 2**-7]).bfloat16() for n in range(3))
    assert average_bytes([to_bytes(low), to_bytes(high)], [0.5, 0.5], "BF16") == to_bytes(low)
    assert average_bytes([to_bytes(high), to_bytes(next_high)], [0.5, 0.5], "BF16") == to_bytes(next_high)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 0.0, -0.0])
def test_special_values_stay_what_they_are(value):
    part = to_bytes(torch.tensor([value], dtype=torch.bfloat16))
    got = np.frombuffer(average_bytes([part, part], [0.5, 0.5], "BF16"), "<u2").astype(np.uint32) << 16
    np.testing.assert_equal(got.view(np.float32)[0], np.float32(value))


def test_a_nan_with_the_largest_payload_does_not_become_a_number():
    part = np.array([0x7FFF], "<u2").tobytes()
    got = average_bytes([part, part], [0.5, 0.5], "BF16")
    assert np.isnan((np.frombuffer(got, "<u2").astype(np.uint32) << 16).view(np.float32)[0])
