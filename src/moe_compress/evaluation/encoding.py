"""Benchmark items as tokens, cut between context and choice exactly as lm-evaluation-harness cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_compress.errors import DataError
from moe_compress.evaluation.tasks import BenchmarkItem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedItem:
    """An item's token ids.

    Attributes:
        context: of the text before the choices.
        choices: of each choice, one or more tokens.
    """

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]


def context_length(model: PreTrainedModel) -> int:
    """Return how many tokens the model reads at once; where its config does not say, lm-eval's 2048."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048)


def encode_items(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[BenchmarkItem], max_length: int
) -> list[EncodedItem]:
    """Return the items' tokens.

    Context and choice are tokenised together and cut where the context alone ends, so that a choice starts
    with the token it would start with in running text.

    Args:
        tokenizer: the model's tokenizer.
        items: the items.
        max_length: tokens the model reads at once; the last token of a choice is predicted, not read.

    Raises:
        DataError: if an item is longer, or a choice adds no token of its own.
    """
    contexts = tokenizer([item.context for item in items])["input_ids"]
    texts = [item.context + continuation for item in items for continuation in item.continuations]
    wholes = iter(tokenizer(texts)["input_ids"])
    encoded = []
    for item, context in zip(items, contexts, strict=True):
        choices = tuple(tuple(next(wholes)[len(context) :]) for _ in item.choices)
        _check(item, len(context), choices, max_length)
        encoded.append(EncodedItem(tuple(context), choices))
    return encoded


def _check(item: BenchmarkItem, context: int, choices: tuple[tuple[int, ...], ...], max_length: int) -> None:
    lengths = [len(choice) for choice in choices]
    if min(lengths) == 0:
        raise DataError(
            f"choice {item.choices[lengths.index(0)]!r} of item '{item.id}' adds no token to its question; "
            "reword it or use the model's own tokenizer"
        )
    if context + max(lengths) - 1 > max_length:
        raise DataError(
            f"item '{item.id}' is {context + max(lengths)} tokens long, but the model reads {max_length} "
            "at once; shorten or remove it"
        )
