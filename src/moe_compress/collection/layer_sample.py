"""A layer's dense sample for a method that wants more of it than a sum: reduced on its device at the layer's end.

What enters the experts, the stream and the router's logits are gathered at the sampled tokens. At the layer's end
its experts run on them, some tokens at a time, and only inner products of their outputs are kept for the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from moe_compress.collection.dense import Forward, TokenSample, check_runs_single_experts, run_expert
from moe_compress.collection.inside import Inside
from moe_compress.collection.requests import AT_ONCE
from moe_compress.errors import UnsupportedModelError
from moe_compress.types import ExpertProducts, LayerSample, MoELayout, Reduction, RouterTrial, RoutingBatch

_APART = 0.05
"""How far experts' outputs times their gate weights may be from what was added, as a share of it: rounding."""

_TRIALS = 4


class _Gathered:
    """What is kept of one layer until all its batches have passed."""

    def __init__(self, forward: Forward, inside: Inside, trials: tuple[RouterTrial, ...]) -> None:
        self.forward, self.family, self.name = forward, inside.family, inside.name
        self.scale: Any = inside.output_scale()
        self.biases, self.trials = inside.biases, trials
        self.values: dict[str, torch.Tensor] = {}


class ReducedSample:
    """Gathers each layer's sample and hands it to the method's reduction.

    Args:
        lengths: tokens of each demonstration.
        num_tokens: tokens of the sample.
        layout: the model's layout.
        reduction: what becomes of a layer's sample.
    """

    def __init__(self, lengths: Sequence[int], num_tokens: int, layout: MoELayout, reduction: Reduction) -> None:
        self._tokens = TokenSample(lengths, num_tokens)
        self._layout, self._reduction = layout, reduction
        self._layers: dict[int, _Gathered] = {}

    @property
    def rows(self) -> tuple[int, ...]:
        """The layers gathered and not yet finished."""
        return tuple(self._layers)

    def add(self, row: int, forward: Forward, inputs_TD: torch.Tensor, batch: RoutingBatch, inside: Inside) -> None:
        """Keep the sampled tokens of one layer's batch, and try its router on the first.

        Raises:
            UnsupportedModelError: if what the family would do with other experts picked cannot be told.
        """
        if row not in self._layers:
            check_runs_single_experts(forward)
            inside.check_answers()
            trials = tuple(_try_router(inside, batch, self._layout, row))
            self._layers[row] = _Gathered(forward, inside, trials)
        before_TD, added_TD = inside.stream()
        gates_TE = torch.zeros_like(batch.router_logits_TE, dtype=torch.float32)
        gates_TE.scatter_(1, batch.expert_ids_TK, batch.gate_weights_TK)
        seen = {
            "inputs": inputs_TD,
            "before": before_TD,
            "added": added_TD,
            "logits": batch.router_logits_TE,
            "gates": gates_TE,
        }
        place_S, token_S = self._tokens.find(batch)
        kept = self._layers[row].values
        for name, values in seen.items():
            if name not in kept:
                kept[name] = values.new_zeros(self._tokens.num_tokens, values.shape[1])
            kept[name][place_S] = values[token_S]

    def finish(self, row: int, num_experts: int) -> Mapping[str, torch.Tensor]:
        """Return what the method makes of the layer, `[E]` each, and let go of the layer.

        Raises:
            UnsupportedModelError: if what the experts give is not what was seen to be added.
        """
        layer = self._layers.pop(row)
        products = ExpertProducts.join(list(_multiply(layer, num_experts)))
        return self._reduction(
            LayerSample(layer.family, layer.name, self._layout, products, layer.trials, layer.biases)
        )


def _multiply(layer: _Gathered, num_experts: int) -> Iterator[ExpertProducts]:
    """Yield the products of some tokens at a time; all experts' outputs on them are held together."""
    kept = layer.values
    num_tokens, hidden = kept["inputs"].shape
    at_once = max(1, AT_ONCE // (num_experts * hidden))
    for start in range(0, num_tokens, at_once):
        part = {name: values[start : start + at_once] for name, values in kept.items()}
        outputs = (run_expert(layer.forward, expert, part["inputs"]).float() for expert in range(num_experts))
        outputs_NED = torch.stack(list(outputs), dim=1) * layer.scale
        _check_adds_up(layer, outputs_NED, part)
        yield ExpertProducts.of(part["before"], part["logits"], outputs_NED)


def _check_adds_up(layer: _Gathered, outputs_NED: torch.Tensor, part: Mapping[str, torch.Tensor]) -> None:
    added_ND = part["added"].float()
    apart_ND = torch.einsum("ne,ned->nd", part["gates"], outputs_NED) - added_ND
    if not bool(apart_ND.norm() <= _APART * added_ND.norm()):
        raise UnsupportedModelError(
            f"{layer.name} of '{layer.family}' adds something else to the stream than its experts' outputs times "
            "their gate weights; choose another method than reconstruct (select.method, collect.statistics)"
        )


def _try_router(inside: Inside, batch: RoutingBatch, layout: MoELayout, row: int) -> Iterator[RouterTrial]:
    """Yield what the router does with all experts, then with ever fewer, as many of each of its groups."""
    num_experts, device = layout.num_experts[row], batch.router_logits_TE.device
    size = num_experts // layout.num_groups
    fewest = min(size, max(2, -(-layout.top_k // layout.topk_groups)))
    draw = torch.Generator().manual_seed(row)
    for number in range(_TRIALS):
        count = size - (size - fewest) * number // (_TRIALS - 1)
        of_group = [
            torch.randperm(size, generator=draw)[:count] + group * size for group in range(layout.num_groups)
        ]
        kept = torch.cat(of_group).sort().values
        gates_NE = inside.route(kept.tolist())
        there_E = torch.zeros(num_experts, dtype=torch.bool, device=device)
        there_E[kept.to(device)] = True
        yield RouterTrial(batch.router_logits_TE[: len(gates_NE)].clone(), there_E, gates_NE)
