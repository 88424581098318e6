"""Every expert's output on each demonstration's mean input, as inner products within batches of demonstrations.

C-Prune's published code compares experts, also of different layers, by their outputs on mean-pooled inputs of a
batch of samples. All it needs of them are inner products summed over the batch's samples, which add over processes.
"""

from __future__ import annotations

import torch

from moe_compress.collection.accumulate import add_rows
from moe_compress.collection.dense import Forward, check_runs_single_experts, run_expert
from moe_compress.collection.requests import TOGETHER
from moe_compress.types import RoutingBatch


class PooledSample:
    """Sums what enters each layer's experts by demonstration, then runs every expert on the means.

    Args:
        num_demonstrations: demonstrations of the domain, those of other processes too.
    """

    def __init__(self, num_demonstrations: int) -> None:
        self._num_demonstrations = num_demonstrations
        self._forwards: dict[int, Forward] = {}
        self._sums: dict[int, torch.Tensor] = {}
        self._tokens: dict[int, torch.Tensor] = {}
        self._dtype = torch.float32

    @property
    def rows(self) -> tuple[int, ...]:
        """The layers gathered and not yet finished."""
        return tuple(self._sums)

    def add(self, row: int, forward: Forward, inputs_TD: torch.Tensor, batch: RoutingBatch) -> None:
        """Add one layer's batch; padding is not in it.

        Raises:
            UnsupportedModelError: if the family's experts cannot be run one by one.
        """
        if row not in self._sums:
            check_runs_single_experts(forward)
            self._forwards[row], self._dtype = forward, inputs_TD.dtype
            like = inputs_TD.float()
            self._sums[row] = like.new_zeros(self._num_demonstrations, like.shape[1])
            self._tokens[row] = like.new_zeros(self._num_demonstrations)
        add_rows(self._sums[row], batch.demonstrations_T, inputs_TD.float())
        ones_T = torch.ones_like(batch.demonstrations_T, dtype=torch.float32)
        add_rows(self._tokens[row], batch.demonstrations_T, ones_T)

    def finish(self, row: int, num_experts: int) -> torch.Tensor:
        """Return every expert's outputs, 0 for demonstrations that did not come, `[E, S, D]`, and forget the layer.

        They are as the layer computes them, in its dtype.

        Args:
            row: the layer's position among those with routed experts.
            num_experts: E.
        """
        forward, tokens_S = self._forwards.pop(row), self._tokens.pop(row)
        means_SD = (self._sums.pop(row) / tokens_S.clamp(min=1)[:, None]).to(self._dtype)
        outputs = [run_expert(forward, expert, means_SD) for expert in range(num_experts)]
        return torch.stack(outputs) * (tokens_S > 0)[:, None]


def multiply_outputs(outputs: list[torch.Tensor], widest: int) -> list[torch.Tensor]:
    """Return each layer's inner products with every expert of every layer, float64 `[E, batches, L, E]`.

    Args:
        outputs: every layer's, `[E, S, D]`, layers in order.
        widest: experts of the widest layer; places beyond a layer's own hold 0.
    """
    layers, num_samples = len(outputs), outputs[0].shape[1]
    counts = [len(values) for values in outputs]
    batches = range(0, num_samples, TOGETHER)
    products = [
        torch.zeros(count, len(batches), layers, widest, dtype=torch.float64, device=outputs[0].device)
        for count in counts
    ]
    for number, start in enumerate(batches):
        flat = [values[:, start : start + TOGETHER].flatten(1).double() for values in outputs]
        for one in range(layers):
            for other in range(one, layers):
                between_EE = flat[one] @ flat[other].T
                products[one][:, number, other, : counts[other]] = between_EE
                products[other][:, number, one, : counts[one]] = between_EE.T
    return products
