"""How far a candidate's predictions are from the base's: KL and top-1 agreement, the base being read once.

The base's next-token probabilities are kept as bfloat16, two bytes each, and what that rounding makes of them,
scaled to sum to 1, counts as the base: it is within about 1e-6 nats of it. Small ones stay in memory; a large
vocabulary times many tokens goes to a mapped file that has no name any more, so that nothing is left behind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moe_compress.errors import DataError, NotFiniteError, ResourceError
from moe_compress.evaluation.encoding import context_length
from moe_compress.evaluation.windows import TextBatch, batch_texts, read_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEMORY_BYTES = 2**30
"""Above this many bytes the base's probabilities go to a file."""

_CHUNK = 2**22
"""Probabilities worked on at once, so that the copies in float32 stay small beside the model's own logits."""


@dataclass(frozen=True)
class Divergence:
    """How far a candidate is from the base on one domain's texts.

    Attributes:
        num_tokens: tokens predicted, padding not counted.
        kl: mean over tokens of KL(base || candidate), in nats.
        agreement: share of tokens for which both find the same token likeliest, in 0..1.
    """

    num_tokens: int
    kl: float
    agreement: float


@dataclass(frozen=True)
class _BasePart:
    """The base's predictions for one batch.

    Attributes:
        probabilities_NV: bfloat16, not quite summing to 1.
        mass_N: what they sum to.
        negentropy_N: `sum_v p log p` of them, scaled to sum to 1, float64.
        likeliest_N: the likeliest token.
    """

    probabilities_NV: torch.Tensor
    mass_N: torch.Tensor
    negentropy_N: torch.Tensor
    likeliest_N: torch.Tensor


class BasePredictions:
    """What the base predicts on held-out texts, to be compared with any number of candidates.

    Args:
        model: the base, a causal language model.
        tokenizer: its tokenizer, which the candidates share.
        heldout: domain -> texts.
        context: tokens read at once; the model's own limit, if that is lower.
        tokens_per_batch: about how many tokens, padding included, go through a model at once.
        memory_bytes: above this many bytes the probabilities go to a file.
        folder: where that file is made; None for the system's own place.

    Raises:
        DataError: if a domain has no token to predict.
        NotFiniteError: if the base predicts what is no finite number.
        ResourceError: if the file has no room.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heldout: Mapping[str, Sequence[str]],
        *,
        context: int = 2048,
        tokens_per_batch: int = 2048,
        memory_bytes: int = MEMORY_BYTES,
        folder: Path | None = None,
    ) -> None:
        window = min(context, context_length(model))
        self._batches = {
            domain: batch_texts(tokenizer, texts, window, tokens_per_batch) for domain, texts in heldout.items()
        }
        for domain, batches in self._batches.items():
            if not batches:
                raise DataError(
                    f"the held-out text of domain '{domain}' has no token to predict; give it longer texts"
                )
        needed = self.num_tokens * _vocabulary(model) * torch.bfloat16.itemsize
        place = _make_place(needed, folder) if needed > memory_bytes else None
        with torch.inference_mode():
            self._parts = {
                domain: [_read_base(model, batch, domain, place) for batch in batches]
                for domain, batches in self._batches.items()
            }

    @property
    def num_tokens(self) -> int:
        """Tokens predicted, over all domains."""
        return sum(len(batch.places_N) for batches in self._batches.values() for batch in batches)

    @torch.inference_mode()
    def compare(self, model: PreTrainedModel, domains: Iterable[str] | None = None) -> dict[str, Divergence]:
        """Return domain -> how far a candidate, which may be the base under a mask, is from the base.

        Args:
            model: the candidate.
            domains: those to compare on; None for all.

        Raises:
            NotFiniteError: if the candidate predicts what is no finite number.
        """
        asked = self._batches if domains is None else domains
        return {domain: self._compare(model, domain) for domain in asked}

    def _compare(self, model: PreTrainedModel, domain: str) -> Divergence:
        total, agreed, tokens = 0.0, 0, 0
        for batch, part in zip(self._batches[domain], self._parts[domain], strict=True):
            logits = read_batch(model, batch)
            kl_N, is_same_N = _compare_batch(logits, batch, part)
            _check_finite(kl_N, batch, domain, "candidate")
            total += float(kl_N.sum())
            agreed += int(is_same_N.sum())
            tokens += len(kl_N)
        return Divergence(tokens, total / tokens, agreed / tokens)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _make_place(needed: int, folder: Path | None) -> Path:
    """Return the folder for the mapped file, after looking at its room."""
    place = folder or Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ResourceError(
            f"the base's predictions on the held-out text need {needed} bytes, and {place} has {free} free; lower "
            "evaluate.heldout_limit"
        )
    return place


def _read_base(model: PreTrainedModel, batch: TextBatch, domain: str, place: Path | None) -> _BasePart:
    logits = read_batch(model, batch)
    tokens, vocabulary = len(batch.places_N), logits.shape[-1]
    probabilities_NV = _allocate(tokens, vocabulary, place)
    mass_N, negentropy_N = torch.empty(tokens), torch.empty(tokens, dtype=torch.float64)
    likeliest_N = torch.empty(tokens, dtype=torch.long)
    for rows, logits_nV in _chunks(logits, batch):
        rounded_nV = logits_nV.softmax(-1).bfloat16()
        probabilities_NV[rows] = rounded_nV.cpu()
        mass_n = rounded_nV.double().sum(-1)
        mass_N[rows] = mass_n.float().cpu()
        negentropy_n = torch.xlogy(rounded_nV.float(), rounded_nV.float()).double().sum(-1)
        negentropy_N[rows] = (negentropy_n / mass_n - mass_n.log()).cpu()
        likeliest_N[rows] = logits_nV.argmax(-1).cpu()
    _check_finite(negentropy_N, batch, domain, "base model")
    return _BasePart(probabilities_NV, mass_N, negentropy_N, likeliest_N)


def _allocate(tokens: int, vocabulary: int, place: Path | None) -> torch.Tensor:
    if place is None:
        return torch.empty(tokens, vocabulary, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        # The mapping outlives the file's name.
        size = tokens * vocabulary
        mapped = torch.from_file(f"{folder}/base", shared=True, size=size, dtype=torch.bfloat16)
        return mapped.view(tokens, vocabulary)


def _chunks(logits: torch.Tensor, batch: TextBatch) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield predictions `[n, V]` in float32, a bounded number at a time, and which of all they are."""
    places_N, flat = batch.places_N, logits.flatten(0, 1)
    size = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(places_N), size):
        rows = slice(start, start + size)
        yield rows, flat[places_N[rows].to(flat.device)].float()


def _compare_batch(logits: torch.Tensor, batch: TextBatch, part: _BasePart) -> tuple[torch.Tensor, torch.Tensor]:
    """Return per token KL(base || candidate), float64 `[N]`, and whether both find one token likeliest, `[N]`.

    `KL = sum_v p log p - sum_v p log q`, the first sum known beforehand.
    """
    kl_N, is_same_N = part.negentropy_N.clone(), torch.empty_like(part.likeliest_N, dtype=torch.bool)
    for rows, logits_nV in _chunks(logits, batch):
        is_same_N[rows] = logits_nV.argmax(-1).cpu() == part.likeliest_N[rows]
        base_nV = part.probabilities_NV[rows].to(logits.device).float()
        cross_n = (logits_nV.log_softmax(-1) * base_nV).sum(-1).cpu()
        kl_N[rows] -= (cross_n / part.mass_N[rows]).double()
    return kl_N, is_same_N


def _check_finite(values_N: torch.Tensor, batch: TextBatch, domain: str, who: str) -> None:
    broken = (~values_N.isfinite()).nonzero()
    if len(broken):
        text = batch.text_at(int(batch.places_N[broken[0, 0]]))
        raise NotFiniteError(
            f"the {who} predicts NaN or infinity on text {text + 1} of domain '{domain}'; check its weights"
        )
