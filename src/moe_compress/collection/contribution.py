"""How far the routed experts turn the residual stream: `1 - cos(h, h + what they add)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def pass_through(
    contribution: torch.Tensor, nature: str, module: nn.Module, entered: torch.Tensor, left: torch.Tensor, kwargs: Any
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
        return module.forward(contribution, **given)  # type: ignore[no-any-return, operator]
    factors = left.float() / entered.float()
    return torch.where(entered == 0, 0.0, contribution.float() * factors)


def change_direction(before_TD: torch.Tensor, added_TD: torch.Tensor) -> torch.Tensor:
    """Return `1 - cos(before, before + added)` per token, float64 `[T]`.

    Written with `sin^2 = 1 - cos^2`, which keeps float32 dot products accurate to 1e-6 of a small change too,
    where subtracting two nearly equal numbers would not.
    """
    before_TD, added_TD = before_TD.float(), added_TD.float()
    before_T = before_TD.square().sum(dim=-1).double()
    added_T = added_TD.square().sum(dim=-1).double()
    inner_T = (before_TD * added_TD).sum(dim=-1).double()
    after_T = before_T + 2 * inner_T + added_T
    product_T = (before_T * after_T).clamp(min=torch.finfo(torch.float64).tiny)
    cosine_T = (before_T + inner_T) / product_T.sqrt()
    sine_squared_T = (before_T * added_T - inner_T.square()).clamp(min=0) / product_T
    return torch.where(cosine_T > 0, sine_squared_T / (1 + cosine_T), 1 - cosine_T)
