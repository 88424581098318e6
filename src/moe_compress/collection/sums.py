"""The sums one pass keeps: every score of the methods is a sum over tokens, or a ratio of two."""

from __future__ import annotations

import numpy as np
import torch

from moe_compress.types import FloatArray, MoELayout, RoutingBatch

PER_CHOICE = ("count", "gate", "norm", "gate_norm", "gate_norm_change", "gate_change")
"""Sums over the tokens routed to an expert; `router_probability` is summed over all tokens."""


class RoutingSums:
    """Accumulates float64 sums `[L, E]` of routing batches, each on its layer's own device.

    Attributes:
        num_tokens: tokens added per layer, length L.
    """

    def __init__(self, layout: MoELayout) -> None:
        self.layout = layout
        self.num_tokens = [0] * len(layout.layers)
        self._choices: dict[int, torch.Tensor] = {}
        self._probabilities: dict[int, torch.Tensor] = {}

    def add(self, row: int, batch: RoutingBatch) -> None:
        """Add one layer's batch; `row` counts the layers with routed experts from 0."""
        num_experts = self.layout.num_experts[row]
        choices_ES = sum_choices(batch, num_experts)
        probabilities_E = batch.router_logits_TE.double().softmax(dim=-1).sum(dim=0)
        self._choices[row] = self._choices.get(row, 0) + choices_ES
        self._probabilities[row] = self._probabilities.get(row, 0) + probabilities_E
        self.num_tokens[row] += batch.expert_ids_TK.shape[0]

    def as_arrays(self) -> dict[str, FloatArray]:
        """Return name -> float64 `[L, E]`; layers with fewer experts than the widest are padded with 0."""
        shape = (len(self.layout.layers), max(self.layout.num_experts))
        sums = {name: np.zeros(shape) for name in (*PER_CHOICE, "router_probability")}
        for row, choices_ES in self._choices.items():
            experts = choices_ES.shape[0]
            for column, name in enumerate(PER_CHOICE):
                sums[name][row, :experts] = choices_ES[:, column].cpu().numpy()
            sums["router_probability"][row, :experts] = self._probabilities[row].cpu().numpy()
        return sums


def sum_choices(batch: RoutingBatch, num_experts: int) -> torch.Tensor:
    """Return the sums of `PER_CHOICE` over a batch's token-expert pairs, float64 `[E, 6]`.

    With `g` the gate weight, `n` the output norm and `s = max(0, 1 - cos(h, h~))` (EASY-EP; the cut at 0 is
    the authors' code, not the paper): `1, g, n, g n, g n s, g s`.
    """
    gate_TK = batch.gate_weights_TK.double()
    norm_TK = batch.output_norms_TK.double()
    change_TK = batch.residual_change_T.double().clamp(min=0).unsqueeze(1).expand_as(gate_TK)
    weighted_TK = gate_TK * norm_TK
    values_TKS = torch.stack(
        (
            torch.ones_like(gate_TK),
            gate_TK,
            norm_TK,
            weighted_TK,
            weighted_TK * change_TK,
            gate_TK * change_TK,
        ),
        dim=-1,
    )
    sums_ES = torch.zeros(num_experts, len(PER_CHOICE), dtype=torch.float64, device=gate_TK.device)
    return sums_ES.index_add_(0, batch.expert_ids_TK.reshape(-1), values_TKS.flatten(0, 1))
