"""One small file for each family that departs from what can be derived: `departures/minimax.py` is `minimax`'s.

Such a file has `DEPARTURE`, which says what is different and nothing else. A family without a file is derived.
A family of text inside another has its own: `gemma4_text`, not `gemma4`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from moe_compress.plugins import list_plugins, load_plugin

__all__ = ["Departure", "find_departure"]

Passage = tuple[str, Literal["linear", "norm"]]
"""A module between the experts and the residual stream, by its path in the decoder layer, and its nature."""


def _one(layer: Any) -> float:
    return 1.0


def _plain_sum(layer: Any) -> tuple[float, float]:
    return 1.0, 1.0


@dataclass(frozen=True)
class Departure:
    """How a family differs from the common shape.

    In the common shape a norm feeds the MoE block, what entered that norm is the residual stream `h`, and the sum
    of the experts' outputs, each times the weight the block handed in, is added to it.

    Attributes:
        refused: why its checkpoints cannot be compressed, as the end of a sentence; None when they can.
        top_k: the only number of experts per token its router can pick; None when the config decides.
        has_rows_after_experts: whether the router knows more than the routed experts and keeps it behind them, as
            rows that stay: shared experts, or one that skips the layer.
        count_aliases: names of the number of experts that other engines read and transformers does not save.
        unobserved: why what its experts do cannot be recorded, as the end of a sentence; None when it can.
        residual: what `h` is: the input of the norm that feeds the block; the block's own input; the decoder
            layer's input; or the argument of the child that `residual_child` names.
        residual_child: for `residual="argument"`, the decoder layer's child and the position of its argument.
        passages: what the experts' sum goes through before it is added, in order. The contribution of the routed
            experts is their share of what comes out: a linear module is applied to their sum alone, a norm
            multiplies it with the factors by which it multiplied the total.
        streams: for several residual streams (hyper-connections): the child that mixes them, and how its input
            and output give the streams `[B, S, N, D]` that the block's output is added to, and the weights
            `[B, S, N]` with which each gets it.
        routed_scale: decoder layer -> the factor by which it multiplies the experts' sum itself.
        stream_scales: decoder layer -> the factors of `h` and of the contribution when the two are added.
        are_logits_probabilities: the router hands out its softmax in the place of its logits.
        scales_input: the gate weight multiplies an expert's input, not its output.
        interleaves_on_disk: its checkpoints have gate and up in turn, which transformers undoes when it loads.
    """

    refused: str | None = None
    top_k: int | None = None
    has_rows_after_experts: bool = False
    count_aliases: tuple[str, ...] = ()
    unobserved: str | None = None
    residual: Literal["norm_input", "block_input", "layer_input", "argument"] = "norm_input"
    residual_child: tuple[str, int] | None = None
    passages: tuple[Passage, ...] = ()
    streams: tuple[str, Callable[[Any, Any], tuple[Any, Any]]] | None = None
    routed_scale: Callable[[Any], float] = _one
    stream_scales: Callable[[Any], tuple[Any, Any]] = _plain_sum
    are_logits_probabilities: bool = False
    scales_input: bool = False
    interleaves_on_disk: bool = False


def find_departure(model_type: str) -> Departure:
    """Return how a family departs from the common shape, an empty departure when it does not."""
    package = sys.modules[__name__]
    name = model_type.replace("-", "_")
    if name not in list_plugins(package):
        return Departure()
    departure: Departure = load_plugin(package, name).DEPARTURE
    return departure
