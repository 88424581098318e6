"""Where routers send held-out tokens: what a plan would take from them, and how evenly kept experts are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_compress.errors import DataError, PlanError, UnsupportedModelError
from moe_compress.evaluation.encoding import context_length
from moe_compress.evaluation.masked import find_owners
from moe_compress.evaluation.windows import batch_texts, read_batch
from moe_compress.types import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kept = Sequence[Sequence[int]]


@dataclass(frozen=True)
class LayerRouting:
    """What one layer's router did with all tokens, each array over experts: `[E]`.

    Attributes:
        picked: tokens that picked the expert, at any place.
        first: tokens that gave it their largest gate weight.
        weight: its gate weights summed over tokens.
    """

    picked: FloatArray
    first: FloatArray
    weight: FloatArray

    def __add__(self, other: LayerRouting) -> LayerRouting:
        """Return the sums over both sets of tokens."""
        return LayerRouting(self.picked + other.picked, self.first + other.first, self.weight + other.weight)


@dataclass(frozen=True)
class LayerDrift:
    """What a plan takes from one layer's tokens; shares in 0..1.

    Attributes:
        first: tokens whose top choice is dropped.
        picked: chosen token-expert pairs whose expert is dropped.
        weight: gate weight that lay on dropped experts.
    """

    first: float
    picked: float
    weight: float


@dataclass(frozen=True)
class LayerBalance:
    """How evenly one layer's tokens spread over the experts it kept.

    Attributes:
        shares: of each kept expert in ascending order, the share of all chosen pairs it gets.
        variation: standard deviation of the shares over their mean; 0 is perfectly even.
        peak: the largest share over the mean.
    """

    shares: tuple[float, ...]
    variation: float
    peak: float


@torch.inference_mode()
def observe_routing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context: int = 2048,
    tokens_per_batch: int = 2048,
) -> tuple[LayerRouting, ...]:
    """Return what each layer's router, masked as it is now, does with texts; padding does not count.

    Raises:
        UnsupportedModelError: if the experts do not get ids and weights from their router.
        DataError: if the texts have no token.
    """
    batches = batch_texts(tokenizer, texts, min(context, context_length(model)), tokens_per_batch)
    if not batches:
        raise DataError("the texts to observe routing on have no token to predict; give longer ones")
    total: list[LayerRouting] | None = None
    with _listen(model) as calls:
        for batch in batches:
            calls.clear()
            read_batch(model, batch)
            seen = [_sum(*calls[row], batch.places_N) for row in sorted(calls)]
            total = seen if total is None else [old + new for old, new in zip(total, seen, strict=True)]
    assert total is not None
    return tuple(total)


def measure_drift(routing: Sequence[LayerRouting], kept: Kept) -> tuple[LayerDrift, ...]:
    """Return per layer what a plan takes from the tokens of the model it was made for.

    Raises:
        PlanError: if the plan has other layers.
    """
    return tuple(
        LayerDrift(*(float(1 - values[list(own)].sum() / values.sum()) for values in _of(layer)))
        for layer, own in _pair(routing, kept)
    )


def measure_balance(routing: Sequence[LayerRouting], kept: Kept) -> tuple[LayerBalance, ...]:
    """Return per layer how a model under a plan's mask spreads tokens over its kept experts.

    Raises:
        PlanError: if the plan has other layers.
    """
    found = []
    for layer, own in _pair(routing, kept):
        shares = layer.picked[sorted(own)] / layer.picked.sum()
        found.append(
            LayerBalance(
                tuple(shares.tolist()), float(shares.std() / shares.mean()), float(shares.max() / shares.mean())
            )
        )
    return tuple(found)


def _of(layer: LayerRouting) -> tuple[FloatArray, FloatArray, FloatArray]:
    return layer.first, layer.picked, layer.weight


def _pair(routing: Sequence[LayerRouting], kept: Kept) -> Iterator[tuple[LayerRouting, Sequence[int]]]:
    if len(routing) != len(kept):
        raise PlanError(
            f"the plan covers {len(kept)} layers, routing was observed in {len(routing)}; plan for this model"
        )
    return zip(routing, kept, strict=True)


@contextmanager
def _listen(model: PreTrainedModel) -> Iterator[dict[int, tuple[int, torch.Tensor, torch.Tensor]]]:
    """Yield a dictionary that each forward pass fills: layer -> number of experts, ids `[T, K]`, weights."""
    calls: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def hear(row: int, experts: Any, inputs: tuple[Any, ...]) -> None:
        if len(inputs) != 3 or inputs[1].is_floating_point() or inputs[1].shape != inputs[2].shape:
            raise UnsupportedModelError(
                f"the experts of '{model.config.model_type}' are not handed ids and gate weights, so what its "
                "routers do cannot be observed; leave this probe out for it"
            )
        calls[row] = (experts.num_experts, inputs[1], inputs[2])

    handles = [
        owner.experts.register_forward_pre_hook(partial(hear, row)) for row, owner in enumerate(find_owners(model))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _sum(num_experts: int, ids_TK: torch.Tensor, weights_TK: torch.Tensor, places_N: torch.Tensor) -> LayerRouting:
    places_N = places_N.to(ids_TK.device)
    ids_NK, weights_NK = ids_TK[places_N], weights_TK[places_N].double()
    first_N = ids_NK.gather(1, weights_NK.argmax(1, keepdim=True))[:, 0]

    def count(ids: torch.Tensor, weights: torch.Tensor | None = None) -> FloatArray:
        return np.asarray(torch.bincount(ids.flatten(), weights, num_experts).double().cpu().numpy())

    return LayerRouting(count(ids_NK), count(first_N), count(ids_NK, weights_NK.flatten()))
