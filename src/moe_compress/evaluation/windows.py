"""Texts as a model reads them to predict every token: cut into windows, batched by length, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PADDING = -100
"""The target of a place where nothing is predicted, as torch's losses know it."""


@dataclass(frozen=True)
class TextBatch:
    """Windows that go through a model together.

    Attributes:
        ids_BS: token ids, 0 where padded.
        targets_BS: the token that follows each, `PADDING` where padded.
        texts: of each row, the position of its text among those given.
    """

    ids_BS: torch.Tensor
    targets_BS: torch.Tensor
    texts: tuple[int, ...]

    @property
    def places_N(self) -> torch.Tensor:
        """Where something is predicted, counted over all rows."""
        return (self.targets_BS.flatten() != PADDING).nonzero()[:, 0]

    def text_at(self, place: int) -> int:
        """Return which text a place belongs to."""
        return self.texts[place // self.ids_BS.shape[1]]


def batch_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int, tokens_per_batch: int
) -> list[TextBatch]:
    """Return the texts' windows, longest first.

    Every token but the first of a text is predicted once, from at most `context` tokens before it: a long text is
    cut into windows that overlap by one token.

    Args:
        tokenizer: the model's tokenizer.
        texts: the texts; of one without a token to predict there is no window.
        context: tokens read at once.
        tokens_per_batch: about how many tokens, padding included, go through the model at once.
    """
    ids = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    windows = [
        (number, text[start : start + context + 1])
        for number, text in enumerate(ids)
        for start in range(0, len(text) - 1, context)
    ]
    windows.sort(key=lambda window: len(window[1]), reverse=True)
    batches, start = [], 0
    while start < len(windows):
        size = max(1, tokens_per_batch // len(windows[start][1]))
        batches.append(_pad(windows[start : start + size]))
        start += size
    return batches


def read_batch(model: PreTrainedModel, batch: TextBatch) -> torch.Tensor:
    """Return a model's logits for every place of a batch, `[B, S, V]`."""
    ids_BS, targets_BS = batch.ids_BS.to(model.device), batch.targets_BS.to(model.device)
    mask_BS = (targets_BS != PADDING).long()
    logits: torch.Tensor = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    return logits


def _pad(windows: list[tuple[int, list[int]]]) -> TextBatch:
    width = max(len(window) for _, window in windows) - 1
    ids_BS = torch.zeros(len(windows), width, dtype=torch.long)
    targets_BS = torch.full((len(windows), width), PADDING)
    for row, (_, window) in enumerate(windows):
        ids_BS[row, : len(window) - 1] = torch.tensor(window[:-1])
        targets_BS[row, : len(window) - 1] = torch.tensor(window[1:])
    return TextBatch(ids_BS, targets_BS, tuple(number for number, _ in windows))
