"""Demonstrations as padded batches of token ids, each row knowing which demonstration it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Batch:
    """Sequences of one forward pass, padded on the right.

    Attributes:
        input_ids_BS: token ids, int64.
        mask_BS: 1 for tokens, 0 for padding, int64.
        demonstrations_B: position of each row's demonstration among those of its domain, int64.
    """

    input_ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    demonstrations_B: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that count."""
        return int(self.mask_BS.sum())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.input_ids_BS.to(device), self.mask_BS.to(device), self.demonstrations_B.to(device))


def encode(texts: Sequence[str], tokenizer: Any, max_tokens: int, batch_size: int) -> Iterator[Batch]:
    """Yield batches of texts cut at `max_tokens`.

    Longest first, so that a batch too large for the device fails at once.
    """
    ids = [tokenizer(text, verbose=False)["input_ids"][:max_tokens] for text in texts]
    order = sorted(range(len(ids)), key=lambda position: len(ids[position]), reverse=True)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        input_ids_BS = torch.zeros(len(chosen), len(ids[chosen[0]]), dtype=torch.long)
        mask_BS = torch.zeros_like(input_ids_BS)
        for row, position in enumerate(chosen):
            input_ids_BS[row, : len(ids[position])] = torch.tensor(ids[position])
            mask_BS[row, : len(ids[position])] = 1
        yield Batch(input_ids_BS, mask_BS, torch.tensor(chosen))
