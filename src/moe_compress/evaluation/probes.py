"""What likelihoods do not show: does a model that writes freely repeat itself, go in circles, or stop early?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_compress.evaluation.generation import continue_texts
from moe_compress.evaluation.tasks import BenchmarkTask
from moe_compress.types import WrittenText

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOOP_REPEATS = 3
"""How often a passage must stand at a text's end, in a row, to count as a loop."""

LOOP_TOKENS = 12
"""How many tokens those repeats must cover, so that a short list or an ellipsis does not count."""


def write_freely(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[BenchmarkTask],
    *,
    prompts: int,
    max_new_tokens: int,
    batch_size: int = 16,
) -> tuple[WrittenText, ...]:
    """Return what a model writes after questions of each task, and whether it goes in circles.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: their first items are the prompts, the same for every model.
        prompts: how many of each task.
        max_new_tokens: where a text is cut that does not end.
        batch_size: prompts per forward pass.
    """
    asked = [(task.name, item) for task in tasks for item in task.items[:prompts]]
    texts = continue_texts(
        model,
        tokenizer,
        [item.context for _, item in asked],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return tuple(
        WrittenText(
            task=task,
            item=item.id,
            text=text.text,
            num_tokens=len(text.token_ids),
            ended=text.ended,
            is_loop=is_loop(text.token_ids),
            repetition=repetition(text.token_ids),
        )
        for (task, item), text in zip(asked, texts, strict=True)
    )


def is_loop(token_ids: Sequence[int]) -> bool:
    """Return whether a text ends going in circles: one passage again and again up to its last token.

    A period `p` holds for the last `n` tokens if each equals the one `p` before it. The text loops if some
    period holds for at least `LOOP_REPEATS` repeats and `LOOP_TOKENS` tokens.
    """
    return any(
        _tail_of_period(token_ids, period) >= max(LOOP_REPEATS * period, LOOP_TOKENS)
        for period in range(1, len(token_ids) // LOOP_REPEATS + 1)
    )


def _tail_of_period(token_ids: Sequence[int], period: int) -> int:
    """Return how many tokens at the end have a period."""
    place = len(token_ids) - 1
    while place >= period and token_ids[place] == token_ids[place - period]:
        place -= 1
    return len(token_ids) - 1 - place + period


def repetition(token_ids: Sequence[int], order: int = 4) -> float:
    """Return the share of a text's n-grams that stood in it before, in 0..1; 0 for a text without any."""
    grams = [tuple(token_ids[start : start + order]) for start in range(len(token_ids) - order + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
