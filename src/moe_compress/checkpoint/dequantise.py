"""Decode FP8 and MXFP4 matrices to float32, a few rows at a time, exactly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_compress.checkpoint.arithmetic import AVERAGED_DTYPES, decode_floats

Floats = NDArray[np.float32]

CODE_DTYPES = {"fp8": ("F8_E4M3", "F8_E5M2"), "mxfp4": ("U8",)}
EXPONENT_DTYPES = ("F8_E8M0", "U8")  # scales that are a power of two, in one byte
SCALE_DTYPES = (*AVERAGED_DTYPES, *EXPONENT_DTYPES)

_VALUES = 1 << 20  # decoded at a time
_GROUP = 32  # MXFP4 weights that share a scale, two in a byte
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


@dataclass(frozen=True)
class MatrixCode:
    """How the bytes of a quantised matrix `[R, C]` are read.

    Attributes:
        kind: `fp8` (a byte per value, row by row) or `mxfp4` (two values a byte, column by column).
        code_dtype: safetensors name of the codes' dtype.
        scale_dtype: safetensors name of the scales' dtype.
        shape: rows R and columns C of the decoded matrix.
        block: rows and columns that share one scale; the last block of a row or column may be cut.
    """

    kind: Literal["fp8", "mxfp4"]
    code_dtype: str
    scale_dtype: str
    shape: tuple[int, int]
    block: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks along rows and columns."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def num_code_bytes(self) -> int:
        """The size of the codes."""
        return prod(self.shape) // (2 if self.kind == "mxfp4" else 1)


def decode_slabs(code: MatrixCode, read_codes: Callable[[int, int], bytes], scales: bytes) -> Iterator[Floats]:
    """Yield the matrix in float32, some whole rows after the other; the cuts depend on its shape alone.

    A value is its code times its block's scale; one float32 product, so exact up to float32's own rounding.

    Args:
        code: how its bytes are read.
        read_codes: returns (offset, length) bytes of the codes.
        scales: the bytes of all its scales.
    """
    grid = decode_scales(scales, code.scale_dtype)
    if code.kind == "fp8":
        yield from _decode_fp8(code, read_codes, grid.reshape(code.grid))
    else:
        yield from _decode_mxfp4(code, read_codes, grid.reshape(code.grid[::-1]))


def decode_scales(scales: bytes, dtype: str) -> Floats:
    """Return scales in float32, flat; a byte `b` is `2 ** (b - 127)` and 255 no number (OCP MX, E8M0)."""
    if dtype not in EXPONENT_DTYPES:
        return decode_floats(scales, dtype)
    exponents = np.frombuffer(scales, np.uint8)
    powers = np.ldexp(np.float32(1), np.minimum(exponents, 254).astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), powers)


def _decode_fp8(code: MatrixCode, read_codes: Callable[[int, int], bytes], grid: Floats) -> Iterator[Floats]:
    rows, columns = code.shape
    table = FP8_VALUES[code.code_dtype]
    step = max(1, _VALUES // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        codes = np.frombuffer(read_codes(start * columns, (stop - start) * columns), np.uint8)
        of_rows = grid[np.arange(start, stop) // code.block[0]]
        scales = np.repeat(of_rows, code.block[1], axis=1)[:, :columns]
        yield table[codes].reshape(stop - start, columns) * scales


def _decode_mxfp4(code: MatrixCode, read_codes: Callable[[int, int], bytes], grid: Floats) -> Iterator[Floats]:
    """Decode `[C, R / 32, 16]` bytes with `[C, R / 32]` scales; the low half of a byte comes first."""
    columns, groups = grid.shape
    codes = np.frombuffer(read_codes(0, code.num_code_bytes), np.uint8).reshape(columns, groups, _GROUP // 2)
    step = max(1, _VALUES // (columns * _GROUP))
    for start in range(0, groups, step):
        part = codes[:, start : start + step]
        values = np.empty((*part.shape[:2], _GROUP), dtype=np.float32)
        values[..., 0::2] = _FP4[part & 0xF]
        values[..., 1::2] = _FP4[part >> 4]
        values *= grid[:, start : start + step, None]
        yield np.ascontiguousarray(values.reshape(columns, -1).T)


def _tabulate(mantissa_bits: int, bias: int) -> Floats:
    """Return the value of each byte of a float with a sign, exponent and mantissa, special values aside."""
    magnitude = np.arange(256) & 0x7F
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values: Floats = np.ldexp(fraction, np.maximum(exponent, 1) - bias).astype(np.float32)
    values[128:] = -values[128:]
    return values


def _tabulate_fp8() -> dict[str, Floats]:
    """Return dtype -> value of each byte: E4M3 has one NaN and no infinity, E5M2 both as in IEEE 754."""
    e4m3, e5m2 = _tabulate(3, 7), _tabulate(2, 15)
    e4m3[[0x7F, 0xFF]] = np.nan
    e5m2[[0x7C, 0xFC]] = np.inf, -np.inf
    e5m2[[*range(0x7D, 0x80), *range(0xFD, 0x100)]] = np.nan
    return {"F8_E4M3": e4m3, "F8_E5M2": e5m2}


FP8_VALUES = _tabulate_fp8()
