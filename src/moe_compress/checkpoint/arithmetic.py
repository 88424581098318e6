"""Weighted averages of raw tensor bytes, in float32."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

AVERAGED_DTYPES = ("BF16", "F16", "F32")


def average_bytes(parts: Sequence[bytes], weights: Sequence[float], dtype: str) -> bytes:
    """Return `sum_i weights_i * parts_i`, element by element, in the parts' own dtype.

    Equation (12) of C-Prune for experts, (13) for router rows.

    Args:
        parts: the same number of little-endian elements each.
        weights: one per part.
        dtype: one of `AVERAGED_DTYPES`; sums are float32, then rounded to nearest even.
    """
    total = np.zeros(len(_decode(parts[0], dtype)), dtype=np.float32)
    for part, weight in zip(parts, weights, strict=True):
        total += np.float32(weight) * _decode(part, dtype)
    return _encode(total, dtype)


def _decode(part: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # a bfloat16 is the upper half of a float32
        return (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(part, "<f2" if dtype == "F16" else "<f4").astype(np.float32)


def _encode(values: NDArray[np.float32], dtype: str) -> bytes:
    if dtype != "BF16":
        return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # rounding could carry a NaN's payload away
    return np.where(np.isnan(values), quiet, rounded).astype("<u2").tobytes()
