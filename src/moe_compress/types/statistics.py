"""What MoE layers did with tokens: one batch, and the sums over a domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from moe_compress.errors import StatisticsError
from moe_compress.types.identity import FloatArray, Provenance
from moe_compress.types.layout import MoELayout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RoutingBatch:
    """What one MoE layer did with one batch, padding removed.

    Attributes:
        expert_ids_TK: experts picked, int64.
        gate_weights_TK: the factors the model really multiplied the experts' outputs with, float32.
        output_norms_TK: L2 norms of the experts' outputs before the gate weight, float64.
        residual_change_T: `1 - cos(h, h + routed output)`, float64, not yet cut at 0.
        router_logits_TE: the router's logits for every expert, as the model computed them.
        demonstrations_T: position of each token's demonstration among those of its domain, int64.
    """

    expert_ids_TK: torch.Tensor
    gate_weights_TK: torch.Tensor
    output_norms_TK: torch.Tensor
    residual_change_T: torch.Tensor
    router_logits_TE: torch.Tensor
    demonstrations_T: torch.Tensor


@dataclass(frozen=True)
class ExpertStatistics:
    """Named sums over the tokens of one domain, per layer and expert; two of them add with `+`.

    Attributes:
        domain: whose tokens were summed; `a+b` after adding two domains.
        layout: the layout the sums index into.
        sums: name -> float64 `[L, E]` (or `[L, E, D]`).
        num_tokens: tokens seen, padding not counted.
        provenance: where the sums came from.
    """

    domain: str
    layout: MoELayout
    sums: Mapping[str, FloatArray]
    num_tokens: int
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        lead = (len(self.layout.layers), max(self.layout.num_experts))
        for name, values in self.sums.items():
            if values.shape[:2] != lead:
                raise StatisticsError(
                    f"statistic '{name}' of domain '{self.domain}' has shape {list(values.shape)}, "
                    f"the layout needs {list(lead)} first; collect it again"
                )
            if not np.isfinite(values).all():
                raise StatisticsError(
                    f"statistic '{name}' of domain '{self.domain}' holds NaN or infinity; "
                    "check the checkpoint for damaged weights and collect again"
                )
        self._check_counts()

    def _check_counts(self) -> None:
        """Check the invariant of every collection: per layer, `sum_i N_i == tokens * top_k`."""
        expected = self.num_tokens * self.layout.top_k
        for layer, counts_E in zip(self.layout.layers, self.sums.get("count", ()), strict=False):
            if counts_E.sum() != expected:
                raise StatisticsError(
                    f"layer {layer} counted {int(counts_E.sum())} routed tokens of domain '{self.domain}', "
                    f"but {self.num_tokens} tokens times top_k={self.layout.top_k} is {expected}; collect it again"
                )

    def __getitem__(self, name: str) -> FloatArray:
        """Return one sum by name.

        Raises:
            StatisticsError: if it was not collected.
        """
        if name not in self.sums:
            raise StatisticsError(
                f"no statistic '{name}' was collected for domain '{self.domain}'; "
                f"available: {', '.join(sorted(self.sums))}"
            )
        return self.sums[name]

    def __add__(self, other: ExpertStatistics) -> ExpertStatistics:
        """Return the sums over both sets of tokens.

        Raises:
            StatisticsError: if layouts or the names of the sums differ.
        """
        if self.layout != other.layout or set(self.sums) != set(other.sums):
            raise StatisticsError(
                f"statistics of '{self.domain}' and '{other.domain}' do not add: their layouts or sums differ; "
                "collect both from the same base model with the same settings"
            )
        domain = self.domain if self.domain == other.domain else f"{self.domain}+{other.domain}"
        sums = {name: values + other.sums[name] for name, values in self.sums.items()}
        return replace(self, domain=domain, sums=sums, num_tokens=self.num_tokens + other.num_tokens)
