"""How far the routed experts turn the residual stream: `1 - cos(h, h + what they add)`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_NUMBERS_CACHED, _NUMBERS_AT_ONCE = 2**16, 2**26
"""Numbers converted to float32 at a time: on a CPU as many as its cache holds, elsewhere as bounds the memory."""


def pass_through(
    contribution: torch.Tensor,
    nature: str,
    module: nn.Module,
    entered: torch.Tensor,
    left: torch.Tensor,
    kwargs: Any,
) -> torch.Tensor:
    """Return the routed experts' share of what leaves a module on the way to the residual stream.

    A norm divides the sum of routed and shared experts by one number per token and multiplies it with its
    weights, so the routed part of its output is the routed part of its input times the same factors. That is our
    reading of `h + routed output` for families with norms after the experts; the papers have none.

    Args:
        contribution: the routed experts' share of what entered, tokens first.
        nature: `linear` or `norm`.
        module: the module.
        entered: all that entered, `[..., D]`.
        left: all that left.
        kwargs: what else the module was called with.
    """
    contribution = contribution.reshape(entered.shape)
    if nature == "linear":
        # What the module does with the routed part must not be remembered by a cache.
        given = {key: value for key, value in kwargs.items() if key != "past_key_values"}
        return module.forward(contribution, **given)  # type: ignore[no-any-return]
    factors = left.float() / entered.float()
    return torch.where(entered == 0, 0.0, contribution.float() * factors)


def change_direction(before_TD: torch.Tensor, added_TD: torch.Tensor) -> torch.Tensor:
    """Return `1 - cos(before, before + added)` per token, float64 `[T]`.

    Written with `sin^2 = 1 - cos^2`, which keeps float32 dot products accurate to 1e-6 of a small change too,
    where subtracting two nearly equal numbers would not.
    """
    before_T, added_T, inner_T = (products.double() for products in _norms_and_inner(before_TD, added_TD))
    before_T, added_T = before_T.square(), added_T.square()
    after_T = before_T + 2 * inner_T + added_T
    product_T = (before_T * after_T).clamp(min=torch.finfo(torch.float64).tiny)
    cosine_T = (before_T + inner_T) / product_T.sqrt()
    sine_squared_T = (before_T * added_T - inner_T.square()).clamp(min=0) / product_T
    return torch.where(cosine_T > 0, sine_squared_T / (1 + cosine_T), 1 - cosine_T)


def row_norms(values: torch.Tensor) -> torch.Tensor:
    """Return L2 norms over the last axis, summed up in float32."""
    if values.device.type != "cpu" or values.dtype == torch.float32:
        norms: torch.Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)
        return norms
    # On a CPU the same call converts number by number, which takes twice as long.
    rows_ND = values.reshape(-1, values.shape[-1])
    norms_N = torch.empty(len(rows_ND))
    for start, end, (piece,) in _in_float32(rows_ND):
        torch.linalg.vector_norm(piece, dim=-1, out=norms_N[start:end])
    return norms_N.reshape(values.shape[:-1])


def _norms_and_inner(one_TD: torch.Tensor, other_TD: torch.Tensor) -> torch.Tensor:
    """Return the norms of two tensors' rows and their inner products, float32 `[3, T]`."""
    found_3T = torch.empty(3, len(one_TD), device=one_TD.device)
    for start, end, (one, other) in _in_float32(one_TD, other_TD):
        torch.linalg.vector_norm(one, dim=-1, out=found_3T[0, start:end])
        torch.linalg.vector_norm(other, dim=-1, out=found_3T[1, start:end])
        torch.sum(one.mul_(other), dim=-1, out=found_3T[2, start:end])
    return found_3T


def _in_float32(*tensors: torch.Tensor) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
    """Yield first row, last row and copies in float32 of a few rows at a time, always in the same memory.

    So they stay in a CPU's cache, and what they take is bounded. What is yielded may be written over.
    """
    num_rows, width = tensors[0].shape
    numbers = _NUMBERS_CACHED if tensors[0].device.type == "cpu" else _NUMBERS_AT_ONCE
    rows = min(max(1, numbers // width), max(1, num_rows))
    buffers = [torch.empty(rows, width, device=tensor.device) for tensor in tensors]
    for start in range(0, num_rows, rows):
        end = min(start + rows, num_rows)
        yield (
            start,
            end,
            [
                buffer[: end - start].copy_(tensor[start:end])
                for buffer, tensor in zip(buffers, tensors, strict=True)
            ],
        )
