"""Weighted averages in float32, of raw tensor bytes and of decoded values."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from moe_compress.types import FloatArray

AVERAGED_DTYPES = ("BF16", "F16", "F32")


def average_bytes(
    parts: Sequence[bytes], weights: Sequence[float], dtype: str, noise: Callable[[int], FloatArray] | None = None
) -> bytes:
    """Return `sum_i weights_i * parts_i`, element by element, in the parts' own dtype.

    Equation (12) of C-Prune for experts, (13) for router rows.

    Args:
        parts: the same number of little-endian elements each.
        weights: one per part.
        dtype: one of `AVERAGED_DTYPES`; sums are float32, then rounded to nearest even.
        noise: gives the next so many numbers to add; None adds none.
    """
    total = average([decode_floats(part, dtype) for part in parts], weights)
    if noise is not None:
        total += noise(len(total)).astype(np.float32)
    return encode_floats(total, dtype)


@np.errstate(invalid="ignore", over="ignore")  # what is no number stays none, silently, as in torch
def average(parts: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """Return `sum_i weights_i * parts_i` in float32."""
    total = np.float32(weights[0]) * parts[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += np.float32(weight) * part
    return total


def decode_floats(part: bytes, dtype: str) -> NDArray[np.float32]:
    """Return little-endian numbers of one of `AVERAGED_DTYPES` as float32, flat."""
    if dtype == "BF16":  # a bfloat16 is the upper half of a float32
        return (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(part, "<f2" if dtype == "F16" else "<f4").astype(np.float32)


@np.errstate(invalid="ignore", over="ignore")
def encode_floats(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return contiguous float32 values in one of `AVERAGED_DTYPES`, rounded to nearest even."""
    if dtype != "BF16":
        return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    no_number = np.isnan(values)
    if no_number.any():  # rounding could carry a NaN's payload away
        rounded[no_number] = (bits[no_number] >> 16) | 0x40
    return rounded.astype("<u2").tobytes()
