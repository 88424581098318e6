"""What MoE layers did with tokens: one batch, and the sums over a domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from moe_compress.errors import StatisticsError
from moe_compress.types.identity import FloatArray, Provenance
from moe_compress.types.layout import MoELayout
from moe_compress.types.parts import StatisticsParts, add_in_order

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
        maxima: name -> float64 `[L, E]`, the largest value any token had, 0 where none came.
        parts: the sums kept apart by demonstrations; None where they were not, or no longer can be.
    """

    domain: str
    layout: MoELayout
    sums: Mapping[str, FloatArray]
    num_tokens: int
    provenance: Provenance = field(default_factory=dict)
    maxima: Mapping[str, FloatArray] = field(default_factory=dict)
    parts: StatisticsParts | None = None

    def __post_init__(self) -> None:
        lead = (len(self.layout.layers), max(self.layout.num_experts))
        for name, values in (*self.sums.items(), *self.maxima.items()):
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
        self._check_counts(self.sums.get("count"), self.num_tokens)
        if self.parts is not None:
            self._check_parts(self.parts)

    def _check_counts(self, counts_LE: FloatArray | None, num_tokens: int) -> None:
        """Check the invariant of every collection: per layer, `sum_i N_i == tokens * top_k`."""
        expected = num_tokens * self.layout.top_k
        for layer, counts_E in zip(self.layout.layers, () if counts_LE is None else counts_LE, strict=False):
            if counts_E.sum() != expected:
                raise StatisticsError(
                    f"layer {layer} counted {int(counts_E.sum())} routed tokens of domain '{self.domain}', "
                    f"but {num_tokens} tokens times top_k={self.layout.top_k} is {expected}; collect it again"
                )

    def _check_parts(self, parts: StatisticsParts) -> None:
        """Check that the parts make up the whole, and that each keeps the invariant of counts."""
        for counts_LE, num_tokens in zip(parts.sums.get("count", ()), parts.num_tokens, strict=False):
            self._check_counts(counts_LE, num_tokens)
        for name, values in parts.sums.items():
            if not np.allclose(add_in_order(values), self[name], rtol=1e-9):
                raise StatisticsError(
                    f"the parts of statistic '{name}' of domain '{self.domain}' do not sum to the whole; "
                    "collect it again"
                )

    def __getitem__(self, name: str) -> FloatArray:
        """Return one sum or maximum by name.

        Raises:
            StatisticsError: if it was not collected.
        """
        found = {**self.sums, **self.maxima}
        if name not in found:
            raise StatisticsError(
                f"no statistic '{name}' was collected for domain '{self.domain}', only {', '.join(sorted(found))}; "
                "add it to collect.statistics and collect again"
            )
        return found[name]

    def __add__(self, other: ExpertStatistics) -> ExpertStatistics:
        """Return the sums over both sets of tokens.

        Raises:
            StatisticsError: if layouts, or the names or shapes of the sums differ.
        """
        self._check_adds(other)
        domain = self.domain if self.domain == other.domain else f"{self.domain}+{other.domain}"
        return replace(
            self,
            domain=domain,
            sums={name: values + other.sums[name] for name, values in self.sums.items()},
            num_tokens=self.num_tokens + other.num_tokens,
            maxima={name: np.maximum(values, other.maxima[name]) for name, values in self.maxima.items()},
            parts=self.parts + other.parts if self.parts and other.parts else None,
        )

    def _check_adds(self, other: ExpertStatistics) -> None:
        names = [(set(each.sums), set(each.maxima)) for each in (self, other)]
        if self.layout != other.layout or names[0] != names[1]:
            raise StatisticsError(
                f"statistics of '{self.domain}' and '{other.domain}' do not add: their layouts or sums differ; "
                "collect both from the same base model with the same settings"
            )
        for name in (*self.sums, *self.maxima):
            if self[name].shape != other[name].shape:  # numpy would stretch a length of 1 without a word
                raise StatisticsError(
                    f"statistic '{name}' of '{self.domain}' and '{other.domain}' does not add: its shapes are "
                    f"{list(self[name].shape)} and {list(other[name].shape)}; add shards of one collection only"
                )

    def halves(self) -> tuple[ExpertStatistics, ExpertStatistics]:
        """Return the sums of two random halves of the demonstrations.

        Raises:
            StatisticsError: if the sums were not kept apart.
        """
        parts = self._parts()
        return self._only(parts.of_half(0)), self._only(parts.of_half(1))

    def of_first(self, num_demonstrations: int) -> ExpertStatistics:
        """Return the sums of the first demonstrations in a shuffled order, which is always the same.

        Raises:
            StatisticsError: if the sums were not kept apart there.
        """
        return self._only(self._parts().of_first(num_demonstrations))

    def _parts(self) -> StatisticsParts:
        if self.parts is None:
            raise StatisticsError(
                f"the sums of domain '{self.domain}' were not kept apart by demonstrations; collect it again"
            )
        return self.parts

    def _only(self, chosen: tuple[int, ...]) -> ExpertStatistics:
        """Return the sums over some parts; what is kept for all tokens only is left out."""
        parts = self._parts()
        sums = {name: add_in_order(values[list(chosen)]) for name, values in parts.sums.items()}
        num_tokens = sum(parts.num_tokens[part] for part in chosen)
        return replace(self, sums=sums, num_tokens=num_tokens, maxima={}, parts=None)
