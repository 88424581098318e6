"""Perplexity on held-out text: `exp(negative log-likelihood / tokens predicted)`, padding not counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from moe_compress.errors import DataError, EvaluationError
from moe_compress.evaluation.encoding import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IGNORED = -100


def measure_perplexities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: Mapping[str, Sequence[str]],
    *,
    context: int = 2048,
    tokens_per_batch: int = 2048,
) -> dict[str, float]:
    """Return each domain's perplexity per token.

    Every token but the first of a text is predicted once, from at most `context` tokens before it: a long
    text is cut into windows that overlap by one token.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        heldout: domain -> texts.
        context: tokens read at once; the model's own limit, if that is lower.
        tokens_per_batch: about how many tokens, padding included, go through the model at once.

    Raises:
        DataError: if a domain has no token to predict.
        EvaluationError: if a perplexity is not a finite number.
    """
    window = min(context, context_length(model))
    return {
        domain: _measure(model, _windows(tokenizer, texts, window), domain, tokens_per_batch)
        for domain, texts in heldout.items()
    }


def _measure(model: PreTrainedModel, windows: list[list[int]], domain: str, tokens_per_batch: int) -> float:
    predicted = sum(len(window) - 1 for window in windows)
    if predicted == 0:
        raise DataError(f"the held-out text of domain '{domain}' has no token to predict; give it longer texts")
    with torch.inference_mode():
        total = sum(_loss_of(model, batch) for batch in _batches(windows, tokens_per_batch))
    mean = total / predicted
    if not math.isfinite(mean):
        raise EvaluationError(
            f"the loss on held-out text of domain '{domain}' is {mean}; check the model's weights for NaN"
        )
    return math.exp(mean)


def _windows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> list[list[int]]:
    """Return token windows, longest first; each predicts all its tokens but the first."""
    ids = tokenizer(list(texts))["input_ids"] if texts else []
    windows = [text[start : start + context + 1] for text in ids for start in range(0, len(text) - 1, context)]
    return sorted(windows, key=len, reverse=True)


def _batches(windows: list[list[int]], tokens_per_batch: int) -> Iterator[list[list[int]]]:
    start = 0
    while start < len(windows):
        size = max(1, tokens_per_batch // len(windows[start]))
        yield windows[start : start + size]
        start += size


def _loss_of(model: PreTrainedModel, windows: list[list[int]]) -> float:
    """Return the summed negative log-likelihood of a batch's predicted tokens, in nats."""
    width = max(len(window) for window in windows) - 1
    ids_BS = torch.zeros(len(windows), width, dtype=torch.long)
    targets_BS = torch.full((len(windows), width), _IGNORED)
    for row, window in enumerate(windows):
        ids_BS[row, : len(window) - 1] = torch.tensor(window[:-1])
        targets_BS[row, : len(window) - 1] = torch.tensor(window[1:])
    ids_BS, targets_BS = ids_BS.to(model.device), targets_BS.to(model.device)
    logits = model(input_ids=ids_BS, attention_mask=(targets_BS != _IGNORED).long(), use_cache=False).logits
    losses = cross_entropy(
        logits.flatten(0, 1).float(),
        targets_BS.flatten().to(logits.device),
        ignore_index=_IGNORED,
        reduction="none",
    )
    return float(losses.double().sum())
