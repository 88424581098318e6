"""Perplexity on held-out text: `exp(negative log-likelihood / tokens predicted)`, padding not counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from moe_compress.errors import DataError, NotFiniteError
from moe_compress.evaluation.encoding import context_length
from moe_compress.evaluation.windows import PADDING, TextBatch, batch_texts, read_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def measure_perplexities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: Mapping[str, Sequence[str]],
    *,
    context: int = 2048,
    tokens_per_batch: int = 2048,
) -> dict[str, float]:
    """Return each domain's perplexity per token.

    Every token but the first of a text is predicted once, see `batch_texts`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        heldout: domain -> texts.
        context: tokens read at once; the model's own limit, if that is lower.
        tokens_per_batch: about how many tokens, padding included, go through the model at once.

    Raises:
        DataError: if a domain has no token to predict.
        NotFiniteError: if a perplexity is not a finite number.
    """
    window = min(context, context_length(model))
    return {
        domain: _measure(model, batch_texts(tokenizer, texts, window, tokens_per_batch), domain)
        for domain, texts in heldout.items()
    }


def _measure(model: PreTrainedModel, batches: Sequence[TextBatch], domain: str) -> float:
    predicted = sum(len(batch.places_N) for batch in batches)
    if predicted == 0:
        raise DataError(f"the held-out text of domain '{domain}' has no token to predict; give it longer texts")
    with torch.inference_mode():
        total = sum(_loss_of(model, batch) for batch in batches)
    mean = total / predicted
    if not math.isfinite(mean):
        raise NotFiniteError(
            f"the loss on held-out text of domain '{domain}' is {mean}; check the model's weights for NaN"
        )
    return math.exp(mean)


def _loss_of(model: PreTrainedModel, batch: TextBatch) -> float:
    """Return the summed negative log-likelihood of a batch's predicted tokens, in nats."""
    logits = read_batch(model, batch)
    losses = cross_entropy(
        logits.flatten(0, 1).float(),
        batch.targets_BS.flatten().to(logits.device),
        ignore_index=PADDING,
        reduction="none",
    )
    return float(losses.double().sum())
