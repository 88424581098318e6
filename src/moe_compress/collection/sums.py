"""The sums one pass keeps: every score of the methods is a sum over tokens, or a ratio of two."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch

from moe_compress.collection.accumulate import add_choices, add_requested, add_rows
from moe_compress.collection.batches import Batch
from moe_compress.collection.dense import DenseSample, Forward, lengths_of
from moe_compress.collection.inside import Inside
from moe_compress.collection.layer_sample import ReducedSample
from moe_compress.collection.pooled import PooledSample, multiply_outputs
from moe_compress.collection.requests import ALWAYS, MAXIMA, ON_REQUEST, PER_CHOICE
from moe_compress.collection.weight_gram import multiply_weights
from moe_compress.errors import StatisticsError
from moe_compress.types import (
    ExpertStatistics,
    FloatArray,
    MoELayout,
    Provenance,
    Reduction,
    RoutingBatch,
    StatisticsParts,
    add_in_order,
    assign_parts,
    part_ends,
)

Sums = dict[str, torch.Tensor]


def start_sums(
    layout: MoELayout,
    batches: Iterable[Batch],
    requests: Collection[str] = (),
    embedding_tokens: int = 2048,
    reduction: Reduction | None = None,
) -> RoutingSums:
    """Return the empty sums of one domain.

    Args:
        layout: the model's layout.
        batches: all batches of the domain, those of other ranks and shards too.
        requests: what to keep besides what every collection has, as `resolve_requests` gives it.
        embedding_tokens: tokens that all experts run on, if `embedding` or `elimination` is among the requests.
        reduction: what makes `elimination` of a layer's sample, if that is among the requests.
    """
    lengths = lengths_of(batches)
    sample = DenseSample(lengths, embedding_tokens) if "embedding" in requests else None
    reduced = ReducedSample(lengths, embedding_tokens, layout, reduction) if reduction is not None else None
    return RoutingSums(layout, len(lengths), requests, sample, reduced)


class RoutingSums:
    """Accumulates float64 sums of routing batches, each on its layer's device.

    Of layer `row` are kept `choices` `[P, E, 6]`, `router_probability` `[P, E]` and `tokens` `[P]`, per part of
    the demonstrations; `seen` `[demonstrations]`, 1 for each that came; and what is asked for, under its name.
    """

    def __init__(
        self,
        layout: MoELayout,
        num_demonstrations: int,
        requests: Collection[str] = (),
        sample: DenseSample | None = None,
        reduced: ReducedSample | None = None,
    ) -> None:
        """Start from nothing.

        Args:
            layout: the model's layout.
            num_demonstrations: demonstrations of the domain, those of other ranks and shards too.
            requests: what to keep besides what every collection has, as `resolve_requests` gives it.
            sample: the tokens that all experts run on, for `embedding`.
            reduced: those that a method makes `elimination` of.
        """
        self.layout = layout
        self.num_demonstrations = num_demonstrations
        self.requests = requests
        self.sample = sample
        self.reduced = reduced
        self.pooled = PooledSample(num_demonstrations) if "pooled_gram" in requests else None
        self._parts_N = torch.from_numpy(assign_parts(num_demonstrations))
        self._rows: dict[int, Sums] = {}

    @property
    def num_parts(self) -> int:
        """P, the parts the demonstrations are kept apart in."""
        return 2 * len(part_ends(self.num_demonstrations))

    @property
    def num_tokens(self) -> list[int]:
        """Tokens added per layer, length L."""
        rows = (self._rows.get(row) for row in range(len(self.layout.layers)))
        return [int(sums["tokens"].sum()) if sums else 0 for sums in rows]

    def add(self, row: int, batch: RoutingBatch) -> None:
        """Add one layer's batch; `row` counts the layers with routed experts from 0.

        The same tokens in the same order give the same bits, however they are cut into batches.
        """
        sums = self._sums_of(row, batch.expert_ids_TK.device)
        part_T = self._parts_N[batch.demonstrations_T]
        add_choices(sums["choices"], batch, part_T)
        # Each token in float32, as routers compute it; only what is added up needs float64.
        add_rows(sums["router_probability"], part_T, batch.router_logits_TE.float().softmax(dim=-1).double())
        add_rows(sums["tokens"], part_T, torch.ones_like(part_T, dtype=torch.float64))
        sums["seen"].index_fill_(0, batch.demonstrations_T, 1.0)
        add_requested(sums, batch)

    def inspect(
        self, row: int, forward: Forward, inputs_TD: torch.Tensor, batch: RoutingBatch, inside: Inside
    ) -> None:
        """See what only the experts themselves can tell: the sample's tokens of a batch, and their weights.

        Args:
            row: the layer's position among those with routed experts.
            forward: runs the layer's routed experts.
            inputs_TD: what entered them, padding removed.
            batch: what they did, the same tokens in the same order.
            inside: what else the layer can be asked.
        """
        if self.sample is not None:
            self.sample.add(row, forward, inputs_TD, batch)
        if self.reduced is not None:
            self.reduced.add(row, forward, inputs_TD, batch, inside)
        if self.pooled is not None:
            self.pooled.add(row, forward, inputs_TD, batch)
        if "weight_gram" in self.requests and "weight_gram" not in self._rows[row]:
            self._rows[row]["weight_gram"] = multiply_weights(forward, self.layout.num_experts[row])

    def finish(self) -> None:
        """Run the experts on the sample, of every layer gathered since the last call and still in memory.

        To be called after the last batch of a layer, or of the whole model.
        """
        if self.sample is not None:
            for row in self.sample.rows:
                self._rows[row].update(self.sample.finish(row, self.layout.num_experts[row]))
        if self.reduced is not None:
            for row in self.reduced.rows:
                self._rows[row].update(self.reduced.finish(row, self.layout.num_experts[row]))
        if self.pooled is not None:
            for row in self.pooled.rows:
                self._rows[row]["pooled_outputs"] = self.pooled.finish(row, self.layout.num_experts[row])
            self._multiply_pooled()

    def _multiply_pooled(self) -> None:
        """Turn the layers' pooled outputs into inner products, once those of the last layer are there."""
        rows = range(len(self.layout.layers))
        outputs = [self._rows[row]["pooled_outputs"] for row in rows if "pooled_outputs" in self._rows.get(row, {})]
        if len(outputs) < len(rows):
            return
        for row, products in enumerate(multiply_outputs(outputs, max(self.layout.num_experts))):
            del self._rows[row]["pooled_outputs"]
            self._rows[row]["pooled_gram"] = products

    def _sums_of(self, row: int, device: torch.device) -> Sums:
        """Return what is accumulated for a layer, on the device its batches come from."""
        if self._parts_N.device != device:
            self._parts_N = self._parts_N.to(device)
        if row not in self._rows:
            self._rows[row] = {
                name: torch.zeros(shape, dtype=torch.float64, device=device)
                for name, shape in self._shapes(self.layout.num_experts[row]).items()
            }
        elif self._rows[row]["tokens"].device != device:
            self._rows[row] = {name: values.to(device) for name, values in self._rows[row].items()}
        return self._rows[row]

    def _shapes(self, num_experts: int) -> dict[str, tuple[int, ...]]:
        pairs = {"logit_gram", "coactivation"} & {*self.requests}
        return {
            "choices": (self.num_parts, num_experts, len(PER_CHOICE)),
            "router_probability": (self.num_parts, num_experts),
            "tokens": (self.num_parts,),
            "seen": (self.num_demonstrations,),
            **dict.fromkeys(sorted(pairs), (num_experts, num_experts)),
            **dict.fromkeys(sorted({*MAXIMA} & {*self.requests}), (num_experts,)),
        }

    def state(self, rows: Iterable[int] | None = None) -> Sums:
        """Return a copy of everything accumulated so far as `<row>.<name>`, to save or to reduce over ranks.

        Args:
            rows: the layers to return, zeros for one that had no batch; by default those that had.
        """
        chosen = {row: self._sums_of(row, self._parts_N.device) for row in (self._rows if rows is None else rows)}
        return {f"{row}.{name}": values.clone() for row, sums in chosen.items() for name, values in sums.items()}

    def take(self) -> Sums:
        """Return what `state` returns, in host memory, and forget it; `restore` brings it back."""
        state = {f"{row}.{name}": values.cpu() for row, sums in self._rows.items() for name, values in sums.items()}
        self._rows.clear()
        return state

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
        """Return name -> float64 `[L, E]` of what every collection has; missing experts are padded with 0."""
        return {name: add_in_order(values) for name, values in self._part_arrays().items()}

    def as_statistics(self, domain: str, provenance: Provenance) -> ExpertStatistics:
        """Return everything as one value in host memory, after which nothing may be added.

        Raises:
            StatisticsError: if an invariant of the sums is broken, or what was asked for did not come.
        """
        for row in range(len(self.layout.layers)):
            self._sums_of(row, torch.device("cpu"))
        self._check_inspected(domain)
        parts = self._as_parts()
        named = {name: add_in_order(values) for name, values in parts.sums.items()} | self._requested_arrays()
        return ExpertStatistics(
            domain=domain,
            layout=self.layout,
            sums={name: values for name, values in named.items() if name not in MAXIMA},
            num_tokens=sum(parts.num_tokens),
            provenance=provenance,
            maxima={name: values for name, values in named.items() if name in MAXIMA},
            parts=parts,
        )

    def _check_inspected(self, domain: str) -> None:
        """Check that every layer was inspected for what only its experts can tell."""
        inspected = ("elimination_rank", "embedding", "pooled_gram", "weight_gram")
        for name in (name for name in inspected if ON_REQUEST[name] in self.requests):
            missing = [layer for row, layer in enumerate(self.layout.layers) if name not in self._rows[row]]
            if missing:
                raise StatisticsError(
                    f"'{name}' of domain '{domain}' was asked for, but layer {missing[0]} had no batch to take it "
                    "from; give each process a batch of its own (collect.batch_size, collect.shard)"
                )

    def _as_parts(self) -> StatisticsParts:
        first = self._rows[0]
        part_N, seen_N = assign_parts(self.num_demonstrations), first["seen"].cpu().numpy() > 0
        num_seen_P = np.bincount(part_N[seen_N], minlength=self.num_parts)
        num_tokens = tuple(int(tokens) for tokens in first["tokens"].tolist())
        ends = part_ends(self.num_demonstrations)
        return StatisticsParts(ends, self._part_arrays(), num_tokens, tuple(num_seen_P.tolist()))

    def _part_arrays(self) -> dict[str, FloatArray]:
        """Return name -> float64 `[P, L, E]`."""
        shape = (self.num_parts, len(self.layout.layers), max(self.layout.num_experts))
        arrays = {name: np.zeros(shape) for name in ALWAYS}
        for row, sums in self._rows.items():
            experts = self.layout.num_experts[row]
            for name, values_PE in zip(PER_CHOICE, sums["choices"].cpu().unbind(dim=-1), strict=True):
                arrays[name][:, row, :experts] = values_PE.numpy()
            arrays["router_probability"][:, row, :experts] = sums["router_probability"].cpu().numpy()
        return arrays

    def _requested_arrays(self) -> dict[str, FloatArray]:
        """Return name -> float64 `[L, E, ...]` of what was asked for, padded with 0 up to the widest layer."""
        layers = range(len(self.layout.layers))
        arrays: dict[str, FloatArray] = {}
        for name in sorted(ON_REQUEST):
            shapes = {row: self._rows[row][name].shape for row in layers if name in self._rows[row]}
            if shapes:
                arrays[name] = np.zeros((len(layers), *np.max(list(shapes.values()), axis=0)))
            for row, shape in shapes.items():
                place = torch.from_numpy(arrays[name][row][tuple(map(slice, shape))])
                self._rows[row][name] = place.copy_(self._rows[row][name])  # not twice: embeddings are large
        return arrays


def combine(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return what two processes accumulated under one name together."""
    return torch.maximum(ours, theirs) if name in MAXIMA else ours + theirs
