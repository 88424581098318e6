"""What a layer can be asked about a batch while it runs, besides what it did: its stream, and its router's mind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from moe_compress.collection.watch import LayerWatch
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.masking import MASKABLE, biases_of, hide_experts

_TRIED = 256
"""Tokens that a router is tried on."""


class Inside:
    """Answers about the batch that a layer is running; of no use afterwards.

    Args:
        watch: the layer, its experts having run.
        real: drops the rows of padding.
    """

    def __init__(self, watch: LayerWatch, real: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._watch, self._real = watch, real

    @property
    def family(self) -> str:
        """The model type."""
        return self._watch.layer.family

    @property
    def name(self) -> str:
        """The experts' path in the model."""
        return self._watch.layer.name

    @property
    def biases(self) -> tuple[torch.Tensor, ...]:
        """Every bias per expert that the router or its block has, `[E]` each."""
        return tuple(bias.clone() for bias in biases_of(self._watch.layer.owner))

    def check_answers(self) -> None:
        """Check that what the layer would do with other experts picked can be told.

        Raises:
            UnsupportedModelError: if it cannot.
        """
        layer, departure = self._watch.layer, self._watch.layer.departure
        why = None
        if layer.family not in MASKABLE:
            why = "it was not tried whether hiding experts from its router equals removing them"
        elif departure.scales_input:
            why = "its gate weights multiply what experts read, not what they give"
        elif departure.passages or departure.streams:
            why = "what its experts give goes through further modules before it is added to the stream"
        elif layer.owner is layer.decoder_layer:
            why = "its router lies in no block of its own"
        if why:
            raise UnsupportedModelError(
                f"what '{layer.family}' would do without some of its experts cannot be told: {why}; choose another "
                "method than reconstruct (select.method, collect.statistics)"
            )

    def stream(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream and what the routed experts add to it, `[T, D]` each."""
        before_TD, added_TD = self._watch.before_and_added()
        return self._real(before_TD), self._real(added_TD)

    def output_scale(self) -> Any:
        """Return what an expert's output is multiplied with, besides its gate weight, when it is added."""
        return self._watch.layer.departure.stream_scales(self._watch.layer.decoder_layer)[1]

    def route(self, kept: Sequence[int]) -> torch.Tensor:
        """Return the gate weights of the batch's first tokens with the experts of `kept` alone there, `[n, E]`.

        The block's own code runs up to where its experts are called.
        """
        owner: Any = self._watch.layer.owner
        assert self._watch.block_input is not None
        hidden_1ND = self._watch.block_input.flatten(0, -2)
        hidden_1ND = self._real(hidden_1ND)[:_TRIED].unsqueeze(0)
        watched = owner.experts.forward
        owner.experts.forward = _stop
        try:
            with hide_experts(owner, kept):
                owner.forward(hidden_1ND)
        except _Picked as picked:
            ids_NK, weights_NK = picked.args
        finally:
            owner.experts.forward = watched
        scale = self._watch.layer.departure.routed_scale(self._watch.layer.decoder_layer)
        gates_NE = torch.zeros(len(ids_NK), owner.experts.num_experts, device=ids_NK.device)
        return gates_NE.scatter_(1, ids_NK, weights_NK.float() * scale)


class _Picked(Exception):
    """Carries what the experts were called with."""


def _stop(hidden: torch.Tensor, ids_NK: torch.Tensor, weights_NK: torch.Tensor, *_: Any) -> torch.Tensor:
    raise _Picked(ids_NK, weights_NK)
