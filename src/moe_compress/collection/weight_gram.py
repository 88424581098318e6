"""How alike the experts of a layer are by their weights alone, seen while they are in memory."""

from __future__ import annotations

import torch

from moe_compress.collection.dense import Forward
from moe_compress.errors import UnsupportedModelError

_COLUMNS = 1 << 16
"""Weights of each expert that are multiplied at once, so that no float32 copy of all of them is made."""


def multiply_weights(forward: Forward, num_experts: int) -> torch.Tensor:
    """Return the inner products of the experts' weights, all of an expert as one vector, float64 `[E, E]`.

    Args:
        forward: the forward of the module that runs a layer's experts, whose parameters lead with the expert.
        num_experts: E.

    Raises:
        UnsupportedModelError: if the experts' weights are not stacked in the module that runs them.
    """
    parameters = getattr(forward, "__self__", torch.nn.Module()).parameters()
    stacked = [each for each in parameters if each.ndim > 1 and each.shape[0] % num_experts == 0]
    if not stacked:
        raise UnsupportedModelError(
            f"this family's weights of {num_experts} experts are not stacked in one module, so 'weight_gram' "
            "cannot be collected; choose a method that does not need it (select.method, collect.statistics)"
        )
    products_EE = torch.zeros(num_experts, num_experts, dtype=torch.float64, device=stacked[0].device)
    for weights in stacked:
        for columns in weights.detach().reshape(num_experts, -1).split(_COLUMNS, dim=1):
            exact = columns.float()
            products_EE += (exact @ exact.T).double()
    return products_EE
