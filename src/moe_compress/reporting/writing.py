"""How the two models write when nobody gives them choices, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_compress.types import EvaluationResult, WrittenText


@dataclass(frozen=True)
class WritingRow:
    """Both models' texts after the same prompts of one task; shares are in 0..1, lengths in tokens.

    Attributes:
        task: the task's name.
        num_prompts: texts of each model.
        loops: share that ends going in circles, baseline and candidate.
        ended: share the model ended itself, before the limit.
        length: mean length.
        repetition: mean share of 4-grams that stood in the text before.
    """

    task: str
    num_prompts: int
    loops: tuple[float, float]
    ended: tuple[float, float]
    length: tuple[float, float]
    repetition: tuple[float, float]


def compare_writing(baseline: EvaluationResult, candidate: EvaluationResult) -> tuple[WritingRow, ...]:
    """Return a row for each task both models wrote on, in the candidate's order."""
    tasks = dict.fromkeys(text.task for text in candidate.written)
    pairs = {task: (baseline.written_for(task), candidate.written_for(task)) for task in tasks}
    return tuple(
        WritingRow(
            task=task,
            num_prompts=len(after),
            loops=(_mean([t.is_loop for t in before]), _mean([t.is_loop for t in after])),
            ended=(_mean([t.ended for t in before]), _mean([t.ended for t in after])),
            length=(_mean([t.num_tokens for t in before]), _mean([t.num_tokens for t in after])),
            repetition=(_mean([t.repetition for t in before]), _mean([t.repetition for t in after])),
        )
        for task, (before, after) in pairs.items()
        if before
    )


def new_loops(baseline: EvaluationResult, candidate: EvaluationResult) -> tuple[WrittenText, ...]:
    """Return the candidate's texts that go in circles where the baseline's do not."""
    calm = {(text.task, text.item) for text in baseline.written if not text.is_loop}
    return tuple(text for text in candidate.written if text.is_loop and (text.task, text.item) in calm)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
