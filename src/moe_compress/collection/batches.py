"""Demonstrations as padded batches of token ids, each row knowing which demonstration it is."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moe_compress.types import Demonstrations

logger = logging.getLogger(__name__)


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


def encode_domains(
    domains: Mapping[str, Demonstrations], tokenizer: Any, max_tokens: int, batch_size: int
) -> dict[str, tuple[Batch, ...]]:
    """Return each domain's batches, and say how many demonstrations are cut at `max_tokens`."""
    batches = {
        name: tuple(encode(demonstrations.texts, tokenizer, max_tokens, batch_size))
        for name, demonstrations in domains.items()
    }
    for name, own in batches.items():
        num_cut = sum(int(batch.mask_BS.sum(dim=1).eq(max_tokens).sum()) for batch in own)
        if num_cut:
            logger.info(
                "%d of %d demonstrations of %s reach %d tokens and are cut there",
                num_cut, len(domains[name]), name, max_tokens,
            )  # fmt: skip
    return batches


def digest_batches(domains: Mapping[str, Sequence[Batch]]) -> str:
    """Return a digest of every token of every batch, and of which batch and domain it is in."""
    digest = hashlib.sha256()
    for name, batches in domains.items():
        digest.update(f"{name} {len(batches)}".encode())
        for batch in batches:
            for tensor in (batch.input_ids_BS, batch.mask_BS, batch.demonstrations_B):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
