"""See what each MoE layer really did in a forward pass, for any family, without changing a bit of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from moe_compress.collection.batches import Batch
from moe_compress.collection.contribution import change_direction
from moe_compress.collection.expert_layers import find_layers
from moe_compress.collection.experts_call import ExpertsCall, Forward
from moe_compress.collection.inside import Inside
from moe_compress.collection.watch import LayerWatch
from moe_compress.errors import StatisticsError
from moe_compress.types import RoutingBatch

Record = Callable[[int, RoutingBatch], None]
Inspect = Callable[[int, Forward, torch.Tensor, RoutingBatch, Inside], None]


class _Observer:
    """Turns what a layer showed into a RoutingBatch of the real tokens of the current batch."""

    def __init__(self, record: Record, inspect: Inspect | None) -> None:
        self.record, self.inspect = record, inspect
        self.num_places = 0
        self.places_T: torch.Tensor | None = None
        self.demonstrations_T: torch.Tensor | None = None

    def set_batch(self, batch: Batch) -> None:
        mask_N = batch.mask_BS.reshape(-1).bool()
        demonstrations_N = batch.demonstrations_B.repeat_interleave(batch.mask_BS.shape[1])
        self.num_places = mask_N.numel()
        # Found once a batch, not once a layer: finding them makes a GPU wait.
        self.places_T = None if bool(mask_N.all()) else mask_N.nonzero().squeeze(1)
        self.demonstrations_T = self._real(demonstrations_N)

    def finish(self, watch: LayerWatch) -> None:
        """Record what a layer did, as soon as it has done it."""
        call = watch.call
        assert call is not None
        if self.demonstrations_T is None or len(call.ids_TK) != self.num_places:
            raise StatisticsError(
                f"{watch.layer.name} saw {len(call.ids_TK)} tokens where the batch has {self.num_places} places; "
                "give the batch to the observer before its forward pass"
            )
        batch = self._routing_batch(watch, call)
        if not _is_finite(batch):
            raise StatisticsError(self._say_not_finite(watch, call, batch))
        self.record(watch.layer.row, batch)
        if self.inspect is not None:
            inside = Inside(watch, self._real)
            self.inspect(watch.layer.row, watch.run_experts, self._real(call.hidden_TD), batch, inside)

    def _real(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rows of real tokens."""
        return values if self.places_T is None else values[self.places_T.to(values.device)]

    def _say_not_finite(self, watch: LayerWatch, call: ExpertsCall, batch: RoutingBatch) -> str:
        """Return where the first value that is not finite came from, in the order in which a layer computes."""
        name, entered = watch.layer.name, watch.entered
        came_TX = None if entered is None else self._real(entered.reshape(self.num_places, -1))
        is_broken_TK = ~batch.output_norms_TK.isfinite()
        if came_TX is not None and not bool(came_TX.isfinite().all()):
            where, what = f"what the layers before gave to the decoder layer of '{name}'", "those layers"
        elif not bool(self._real(call.hidden_TD).isfinite().all()):
            where, what = f"what '{name}' read", "the attention and the norms of its decoder layer"
        elif not bool(
            batch.router_logits_TE.amax(dim=-1).isfinite().all() & batch.gate_weights_TK.isfinite().all()
        ):
            where, what = f"what the router said to '{name}'", "that router"
        elif bool(is_broken_TK.any()):
            expert = int(batch.expert_ids_TK[is_broken_TK][0])
            where, what = f"the output of expert {expert} of '{name}'", "that expert"
        else:
            where, what = f"the residual stream after '{name}'", "its decoder layer"
        return (
            f"NaN or infinity in {where}; check the weights of {what} in the checkpoint for damage, or set "
            "collect.dtype to float32"
        )

    def _routing_batch(self, watch: LayerWatch, call: ExpertsCall) -> RoutingBatch:
        before_TD, added_TD = (self._real(values) for values in watch.before_and_added())
        scale = watch.layer.departure.routed_scale(watch.layer.decoder_layer)
        assert self.demonstrations_T is not None
        return RoutingBatch(
            expert_ids_TK=self._real(call.ids_TK),
            gate_weights_TK=self._real(call.weights_TK).float() * scale,
            output_norms_TK=self._real(call.norms_TK).double(),
            residual_change_T=change_direction(before_TD, added_TD),
            router_logits_TE=self._real(watch.router_logits_TE),
            demonstrations_T=self.demonstrations_T.to(call.ids_TK.device),
        )


@contextmanager
def observe(model: Any, record: Record, inspect: Inspect | None = None) -> Iterator[Callable[[Batch], None]]:
    """Call `record(row, RoutingBatch)` for each MoE layer of each forward pass inside the block.

    Nothing that the model computes is replaced, so its outputs stay the same bits. Layers may be called one at a
    time and weights may come and go: nothing is looked at before the layer runs.

    Args:
        model: a transformers model; left as it was afterwards.
        record: receives the layer's position among the layers with experts, and what it did.
        inspect: receives, after `record`, the layer's position, its experts' own `forward(hidden, ids, weights)`,
            what they read `[T, D]` (padding removed), what they did, and what else can be asked of the layer. For
            statistics that need more than the chosen experts' norms.

    Yields:
        a function to be given each batch before its forward pass.

    Raises:
        UnsupportedModelError: if what the family's experts do cannot be told.
        StatisticsError: if a layer gives NaN or infinity, or runs another batch than was announced.
    """
    observer = _Observer(record, inspect)
    with ExitStack() as stack:
        for layer in find_layers(model):
            LayerWatch(layer, observer.finish).begin(stack)
        yield observer.set_batch


def _is_finite(batch: RoutingBatch) -> bool:
    """Whether all values of a layer are finite, told by one number, so that a GPU is waited for once a layer."""
    values = batch.gate_weights_TK, batch.output_norms_TK, batch.residual_change_T
    total = batch.router_logits_TE.amax(dim=-1).sum().double()
    return bool(sum((each.sum().double() for each in values), total).isfinite())
