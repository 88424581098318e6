"""How far the routed experts turn the residual stream: `1 - cos(h, h + what they add)`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


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
    pieces = [
        (row_norms(before), row_norms(added), (before * added).sum(dim=-1))
        for before, added in zip(_in_float32(before_TD), _in_float32(added_TD), strict=True)
    ]
    before_T, added_T, inner_T = (torch.cat(parts).double() for parts in zip(*pieces, strict=True))
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
    pieces = _in_float32(values.reshape(-1, values.shape[-1]))
    return torch.cat([torch.linalg.vector_norm(piece, dim=-1) for piece in pieces]).reshape(values.shape[:-1])


def _in_float32(values_TD: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield rows in float32, a few at a time: they stay in the cache, and memory is bounded."""
    numbers = 2**17 if values_TD.device.type == "cpu" else 2**26
    rows = max(1, numbers // values_TD.shape[-1])
    for start in range(0, len(values_TD), rows):
        yield values_TD[start : start + rows].float()
