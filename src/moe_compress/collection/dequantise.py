"""Weights from their stored codes and scales, on whatever device they are; the last block may be cut."""

from __future__ import annotations

from math import prod

import torch

from moe_compress.errors import CheckpointError
from moe_compress.types import Encoding

_CODE_DTYPES = {"fp8": (torch.float8_e4m3fn, torch.float8_e5m2), "mxfp4": (torch.uint8,)}
_SCALE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e8m0fnu, torch.uint8)
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def dequantise(encoding: Encoding, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight that codes and scales stand for.

    Args:
        encoding: how they are stored.
        codes: as on disk; `[..., rows, columns]` for fp8, `[..., rows, blocks, 16]` bytes for mxfp4.
        scales: as on disk; one per block of every matrix or of one that serves all, of whatever shape.
        dtype: what the weight is computed with afterwards.

    Raises:
        CheckpointError: if codes or scales have a dtype that the format does not.
    """
    if codes.dtype not in _CODE_DTYPES[encoding.kind] or scales.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"'{encoding.codes}' is stored as {codes.dtype} {list(codes.shape)} with {scales.dtype} scales "
            f"{list(scales.shape)}, which is no {encoding.kind}; fetch it again"
        )
    if encoding.kind == "fp8":
        return _from_fp8(codes, _as_factors(scales), encoding.block, dtype)
    return _from_mxfp4(codes, _as_factors(scales), dtype)


def _from_fp8(
    codes: torch.Tensor, factors: torch.Tensor, block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Multiply each block by its scale in float32, a row of blocks at a time, so that no second copy exists."""
    rows, columns = codes.shape[-2:]
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    factors = factors.reshape(grid if factors.numel() == prod(grid) else (*codes.shape[:-2], *grid))
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for number, start in enumerate(range(0, rows, block[0])):
        stripe = codes[..., start : start + block[0], :].float()
        wide = factors[..., number, :].repeat_interleave(block[1], dim=-1)[..., :columns]
        values[..., start : start + block[0], :] = stripe * wide.unsqueeze(-2)
    return values


def _as_factors(scales: torch.Tensor) -> torch.Tensor:
    """Return scales as float32; bytes are exponents of two, of which 255 is no number."""
    return (scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales).float()


def _from_mxfp4(codes: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Look each half byte up, low half first, and scale it by its block's power of two.

    Codes are stored row by row of what the model holds transposed, so the weight is `[..., columns, rows]`.
    """
    table = torch.tensor(_FP4_VALUES, dtype=dtype, device=codes.device)
    values = torch.empty(*codes.shape[:-1], codes.shape[-1], 2, dtype=dtype, device=codes.device)
    for low, part in ((0, codes & 0x0F), (1, codes >> 4)):
        values[..., low] = table[part.int()] * factors.unsqueeze(-1)
    return values.reshape(*codes.shape[:-2], -1).transpose(-1, -2)
