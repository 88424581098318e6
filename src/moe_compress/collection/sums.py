"""The sums one pass keeps: every score of the methods is a sum over tokens, or a ratio of two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from moe_compress.types import (
    ExpertStatistics,
    FloatArray,
    MoELayout,
    Provenance,
    RoutingBatch,
    StatisticsParts,
    add_in_order,
    assign_parts,
    part_ends,
)

PER_CHOICE = ("count", "gate", "norm", "gate_norm", "gate_norm_change", "gate_change")
"""Sums over the tokens routed to an expert; `router_probability` is summed over all tokens."""

Sums = dict[str, torch.Tensor]


class RoutingSums:
    """Accumulates float64 sums of routing batches, per part of the demonstrations, each on its layer's device.

    What is kept of layer `row` is named `<row>.choices` `[P, E, 6]`, `<row>.router_probability` `[P, E]`,
    `<row>.tokens` `[P]` and `<row>.seen` `[demonstrations]`, the last being 1 for a demonstration that came.
    """

    def __init__(self, layout: MoELayout, num_demonstrations: int) -> None:
        self.layout = layout
        self.num_demonstrations = num_demonstrations
        self._parts_N = torch.from_numpy(assign_parts(num_demonstrations))
        self._rows: dict[int, Sums] = {}

    @property
    def num_tokens(self) -> list[int]:
        """Tokens added per layer, length L."""
        rows = (self._rows.get(row) for row in range(len(self.layout.layers)))
        return [int(sums["tokens"].sum()) if sums else 0 for sums in rows]

    def add(self, row: int, batch: RoutingBatch) -> None:
        """Add one layer's batch; `row` counts the layers with routed experts from 0.

        The same tokens in the same order give the same bits, however they are cut into batches.
        """
        num_experts = self.layout.num_experts[row]
        sums = self._sums_of(row, batch.expert_ids_TK.device)
        part_T = self._parts_N[batch.demonstrations_T]
        place_TK = part_T.unsqueeze(1) * num_experts + batch.expert_ids_TK
        add_rows(sums["choices"].view(-1, len(PER_CHOICE)), place_TK.flatten(), choice_values(batch))
        # Each token in float32, as routers compute it; only what is added up needs float64.
        probabilities_TE = batch.router_logits_TE.float().softmax(dim=-1).double()
        add_rows(sums["router_probability"], part_T, probabilities_TE)
        add_rows(sums["tokens"], part_T, torch.ones_like(part_T, dtype=torch.float64))
        sums["seen"].index_fill_(0, batch.demonstrations_T, 1.0)

    def _sums_of(self, row: int, device: torch.device) -> Sums:
        """Return what is accumulated for a layer, on the device its batches come from."""
        if self._parts_N.device != device:
            self._parts_N = self._parts_N.to(device)
        if row not in self._rows:
            num_parts, num_experts = 2 * len(part_ends(self.num_demonstrations)), self.layout.num_experts[row]
            shapes = {
                "choices": (num_parts, num_experts, len(PER_CHOICE)),
                "router_probability": (num_parts, num_experts),
                "tokens": (num_parts,),
                "seen": (self.num_demonstrations,),
            }
            self._rows[row] = {
                name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()
            }
        sums = self._rows[row]
        if sums["tokens"].device != device:
            sums = self._rows[row] = {name: values.to(device) for name, values in sums.items()}
        return sums

    def state(self, rows: Iterable[int] | None = None) -> Sums:
        """Return a copy of everything accumulated so far, to save or to reduce over ranks.

        Args:
            rows: the layers to return, all by default.
        """
        chosen = self._rows if rows is None else rows
        return {f"{row}.{name}": values.clone() for row in chosen for name, values in self._rows[row].items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put layers back as `state` gave them; layers it does not name stay as they are."""
        for key, values in state.items():
            row, _, name = key.partition(".")
            self._rows.setdefault(int(row), {})[name] = values.clone()

    def merge(self, state: Mapping[str, torch.Tensor]) -> None:
        """Add what another process accumulated from other demonstrations."""
        for key, values in state.items():
            row, _, name = key.partition(".")
            sums = self._rows.setdefault(int(row), {})
            sums[name] = combine(name, sums[name], values.to(sums[name].device)) if name in sums else values.clone()

    def as_arrays(self) -> dict[str, FloatArray]:
        """Return name -> float64 `[L, E]`; layers with fewer experts than the widest are padded with 0."""
        return {name: add_in_order(values) for name, values in self._part_arrays().items()}

    def as_statistics(self, domain: str, provenance: Provenance) -> ExpertStatistics:
        """Return everything as one value.

        Raises:
            StatisticsError: if an invariant of the sums is broken.
        """
        parts = self._as_parts()
        return ExpertStatistics(
            domain, self.layout, self.as_arrays(), sum(parts.num_tokens), provenance, parts=parts
        )

    def _as_parts(self) -> StatisticsParts:
        ends = part_ends(self.num_demonstrations)
        first = self._rows.get(0) or self._sums_of(0, torch.device("cpu"))
        seen = first["seen"].cpu().numpy().astype(np.int64)
        counted = np.bincount(assign_parts(self.num_demonstrations), weights=seen, minlength=2 * len(ends))
        num_tokens = tuple(int(tokens) for tokens in first["tokens"])
        return StatisticsParts(ends, self._part_arrays(), num_tokens, tuple(counted.astype(int).tolist()))

    def _part_arrays(self) -> dict[str, FloatArray]:
        """Return name -> float64 `[P, L, E]`."""
        num_parts = 2 * len(part_ends(self.num_demonstrations))
        shape = (num_parts, len(self.layout.layers), max(self.layout.num_experts))
        arrays = {name: np.zeros(shape) for name in (*PER_CHOICE, "router_probability")}
        for row, sums in self._rows.items():
            experts = self.layout.num_experts[row]
            for name, values_PE in zip(PER_CHOICE, sums["choices"].cpu().numpy().transpose(2, 0, 1), strict=True):
                arrays[name][:, row, :experts] = values_PE
            arrays["router_probability"][:, row, :experts] = sums["router_probability"].cpu().numpy()
        return arrays


def combine(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return what two processes accumulated under one name together: the larger where it is no sum."""
    return torch.maximum(ours, theirs) if name == "seen" else ours + theirs


def add_rows(sums: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """Add each of `values` to the row of `sums` at its place, in order, so that it repeats to the bit.

    On a GPU `index_add_` adds in whatever order its threads come; accumulating `index_put_` sorts first.
    """
    if sums.is_cuda:
        sums.index_put_((places,), values, accumulate=True)
    else:
        sums.index_add_(0, places, values)


def choice_values(batch: RoutingBatch) -> torch.Tensor:
    """Return what each token-expert pair adds to the sums of `PER_CHOICE`, float64 `[T * K, 6]`.

    With `g` the gate weight, `n` the output norm and `s = max(0, 1 - cos(h, h~))` (EASY-EP; the cut at 0 is
    the authors' code, not the paper): `1, g, n, g n, g n s, g s`.
    """
    gate_TK = batch.gate_weights_TK.double()
    norm_TK = batch.output_norms_TK.double()
    change_T1 = batch.residual_change_T.double().clamp(min=0).unsqueeze(1)
    weighted_TK = gate_TK * norm_TK
    values = (torch.ones_like(gate_TK), gate_TK, norm_TK, weighted_TK, weighted_TK * change_T1, gate_TK * change_T1)
    return torch.stack(values, dim=-1).flatten(0, 1)
