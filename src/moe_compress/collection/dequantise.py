"""Weights from their stored codes and scales, on whatever device they are; the last block may be cut."""

from __future__ import annotations

import torch

from moe_compress.types import Encoding

_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_MXFP4_BIAS = 127


def dequantise(encoding: Encoding, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight that codes and scales stand for.

    Args:
        encoding: how they are stored.
        codes: as on disk; `[..., rows, columns]` for fp8, `[..., rows, blocks, 16]` bytes for mxfp4.
        scales: as on disk; one per block, of whatever shape.
        dtype: what the weight is computed with afterwards.
    """
    if encoding.kind == "fp8":
        return _from_fp8(codes, scales, encoding.block, dtype)
    return _from_mxfp4(codes, scales, dtype)


def _from_fp8(
    codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Multiply each block by its scale in float32, a row of blocks at a time, so that no second copy exists."""
    rows, columns = codes.shape[-2:]
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    factors = _as_factors(scales).reshape(*scales.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    for number, start in enumerate(range(0, rows, block[0])):
        stripe = codes[..., start : start + block[0], :].float()
        wide = factors[..., number, :].repeat_interleave(block[1], dim=-1)[..., :columns]
        values[..., start : start + block[0], :] = stripe * wide.unsqueeze(-2)
    return values


def _as_factors(scales: torch.Tensor) -> torch.Tensor:
    """Return scales as float32; bytes are exponents of two."""
    if scales.dtype == torch.uint8:
        return torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - _MXFP4_BIAS)
    return scales.float()


def _from_mxfp4(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Look each half byte up, low half first, and scale it by its block's power of two.

    Codes are stored row by row of what the model holds transposed, so the weight is `[..., columns, rows]`.
    """
    table = torch.tensor(_FP4_VALUES, dtype=dtype, device=codes.device)
    values = torch.empty(*codes.shape[:-1], codes.shape[-1], 2, dtype=dtype, device=codes.device)
    exponents = scales.to(torch.int32).sub_(_MXFP4_BIAS)
    for low, part in ((0, codes & 0x0F), (1, codes >> 4)):
        values[..., low] = torch.ldexp(table[part.int()], exponents.unsqueeze(-1))
    return values.reshape(*codes.shape[:-2], -1).transpose(-1, -2)
