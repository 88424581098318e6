"""How far the routed experts turn the residual stream: `1 - cos(h, h + what they add)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_NUMBERS_IN_CACHE, _NUMBERS_ON_GPU = 2**17, 2**26
"""Numbers taken in float32 at a time, by each core of a CPU or by a GPU."""


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
        return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)  # type: ignore[no-any-return]
    # On a CPU the same call first writes all of it in float32, far from any cache.
    rows_ND = values.reshape(-1, values.shape[-1])
    norms_N = torch.empty(len(rows_ND))
    buffer_ND = _buffer(rows_ND)
    pieces = zip(torch.split(rows_ND, len(buffer_ND)), torch.split(norms_N, len(buffer_ND)), strict=True)
    for some_ND, found_N in pieces:
        torch.linalg.vector_norm(_in_float32(some_ND, buffer_ND), dim=-1, out=found_N)
    return norms_N.reshape(values.shape[:-1])


def _norms_and_inner(one_TD: torch.Tensor, other_TD: torch.Tensor) -> torch.Tensor:
    """Return the norms of two tensors' rows and their inner products, float32 `[3, T]`."""
    found_3T = torch.empty(3, len(one_TD), device=one_TD.device)
    buffer_ND, other_buffer_ND = _buffer(one_TD), _buffer(other_TD)
    num_rows = len(buffer_ND)
    pieces = zip(torch.split(one_TD, num_rows), torch.split(other_TD, num_rows), strict=True)
    for (some_ND, same_ND), found_3N in zip(pieces, torch.split(found_3T, num_rows, dim=1), strict=True):
        one_ND, other_ND = _in_float32(some_ND, buffer_ND), _in_float32(same_ND, other_buffer_ND)
        torch.linalg.vector_norm(one_ND, dim=-1, out=found_3N[0])
        torch.linalg.vector_norm(other_ND, dim=-1, out=found_3N[1])
        product_ND = torch.mul(one_ND, other_ND, out=buffer_ND[: len(some_ND)])
        torch.sum(product_ND, dim=-1, out=found_3N[2])
    return found_3T


def _buffer(rows_ND: torch.Tensor) -> torch.Tensor:
    """Return room in float32 for as many of the rows as are taken at a time."""
    is_cpu = rows_ND.device.type == "cpu"
    numbers = _NUMBERS_IN_CACHE * torch.get_num_threads() if is_cpu else _NUMBERS_ON_GPU
    num_rows, width = rows_ND.shape
    return torch.empty(max(1, min(numbers // width, num_rows)), width, device=rows_ND.device)


def _in_float32(some_ND: torch.Tensor, buffer_ND: torch.Tensor) -> torch.Tensor:
    """Return rows in float32, in the buffer if they are not yet."""
    return some_ND if some_ND.dtype == torch.float32 else buffer_ND[: len(some_ND)].copy_(some_ND)
