"""Let a model write on from a prompt, always its likeliest token, in padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from moe_compress.evaluation.encoding import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        token_ids: the tokens, without the one that ends a text.
        text: the same as text.
        ended: whether the model ended the text itself, before the limit.
    """

    token_ids: tuple[int, ...]
    text: str
    ended: bool


def continue_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[Continuation]:
    """Return what the model writes after each prompt, greedily, so that the same model writes the same again.

    Args:
        model: a causal language model; what its generation config says beside the tokens that end a text would
            hold here, so `load_stock` takes that out.
        tokenizer: its tokenizer.
        prompts: the texts to go on from; each is cut on the left to what leaves room for the new tokens, at the
            least to its last token.
        max_new_tokens: where a text is cut that does not end.
        batch_size: prompts per forward pass.
    """
    keep = max(1, context_length(model) - max_new_tokens)
    ids = [tokenizer(prompt, verbose=False)["input_ids"][-keep:] for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    ends = _end_tokens(model, tokenizer)
    written: dict[int, Continuation] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = _generate(model, [ids[index] for index in chosen], max_new_tokens, ends)
        written |= {index: _cut(row, ends, tokenizer) for index, row in zip(chosen, rows, strict=True)}
    return [written[index] for index in range(len(ids))]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a text: those of the generation config, else the tokenizer's."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else list(ends) if isinstance(ends, list) else [ends]


def _generate(
    model: PreTrainedModel, rows: Sequence[list[int]], max_new_tokens: int, ends: list[int]
) -> list[list[int]]:
    """Return the new tokens of a batch; prompts are padded on the left, so that all of them end together."""
    width = max(len(row) for row in rows)
    filler = ends[0] if ends else 0
    input_ids_BS = torch.full((len(rows), width), filler, dtype=torch.long)
    mask_BS = torch.zeros_like(input_ids_BS)
    for place, row in enumerate(rows):
        input_ids_BS[place, width - len(row) :] = torch.tensor(row)
        mask_BS[place, width - len(row) :] = 1
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=filler, eos_token_id=ends or None
    )
    with torch.inference_mode():
        out_BS = model.generate(
            input_ids_BS.to(model.device), attention_mask=mask_BS.to(model.device), generation_config=settings
        )
    new: list[list[int]] = out_BS[:, width:].tolist()
    return new


def _cut(row: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase) -> Continuation:
    """Return a row up to the first token that ends a text."""
    stop = next((place for place, token in enumerate(row) if token in ends), None)
    tokens = tuple(row[:stop])
    return Continuation(tokens, tokenizer.decode(tokens, skip_special_tokens=True), stop is not None)
