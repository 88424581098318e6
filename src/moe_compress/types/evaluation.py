"""What a domain brings, what was measured of a model, and how two models compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moe_compress.errors import DataError, EvaluationError, NotFiniteError
from moe_compress.types.identity import Provenance


@dataclass(frozen=True)
class Demonstrations:
    """A domain's worked examples as token sequences, and the rows they came from.

    Attributes:
        domain: the domain's name.
        ids: one id per example.
        texts: the text of each example as the model reads it: prompt, then response.
        digest: sha256 of the rows, the data's identity in keys and lineage.
    """

    domain: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    digest: str

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError(
                f"domain '{self.domain}' has no demonstrations; add rows with 'question' and 'answer' "
                "to its demonstrations file"
            )

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class ItemResult:
    """How a model did on one benchmark item, by choosing the likeliest answer or by writing one.

    Attributes:
        task: the task's name, such as `medical`.
        item: the item's id.
        log_likelihoods: of each choice, in nats; empty where the answer was written.
        chosen: index of the likeliest choice, by its length too where the benchmark's metric counts that,
            or the answer taken from what was written; of a program, what stopped it.
        answer: index of the right choice, or the right answer in words.
        question: how the item was put, without worked examples; empty where the task's file says it.
        text: what the model wrote.
        num_tokens: how many tokens that is.
        judged: whether the benchmark's metric counts the answer as right; None for the domains' own
            questions, where the right choice is.
    """

    task: str
    item: str
    log_likelihoods: tuple[float, ...]
    chosen: int | str
    answer: int | str
    question: str = ""
    text: str = ""
    num_tokens: int = 0
    judged: bool | None = None

    @property
    def is_correct(self) -> bool:
        """Whether the answer is the right one."""
        return self.chosen == self.answer if self.judged is None else self.judged

    @property
    def chance(self) -> float:
        """The share of such items that guessing answers rightly; nothing written is right by chance."""
        return 1 / len(self.log_likelihoods) if self.log_likelihoods else 0.0


@dataclass(frozen=True)
class WrittenText:
    """What a model wrote freely after one prompt, its likeliest token each time.

    Attributes:
        task: the task whose question was the prompt.
        item: the item's id.
        text: what it wrote.
        num_tokens: its length, without the token that ends a text.
        ended: whether the model ended it, before the limit.
        is_loop: whether it ends going in circles.
        repetition: share of its 4-grams that stood in it before, in 0..1.
    """

    task: str
    item: str
    text: str
    num_tokens: int
    ended: bool
    is_loop: bool
    repetition: float


@dataclass(frozen=True)
class EvaluationResult:
    """What was measured of one model; items are kept, so that two models compare pairwise.

    Attributes:
        model: what the model is called in messages.
        items: every benchmark item of every task.
        perplexities: domain -> perplexity per token on held-out text.
        num_parameters: parameters in the checkpoint.
        num_bytes: bytes of its weight files.
        written: what the model wrote freely, on the same prompts as the other model.
        tokens_per_second: prefill speed, timed beside the other model in the same run; NaN until then.
        provenance: where the result came from.
        fault: why nothing could be measured, with the place; empty where everything was.
    """

    model: str
    items: tuple[ItemResult, ...]
    perplexities: Mapping[str, float]
    num_parameters: int
    num_bytes: int
    written: tuple[WrittenText, ...] = ()
    tokens_per_second: float = float("nan")
    provenance: Provenance = field(default_factory=dict)
    fault: str = ""

    def __post_init__(self) -> None:
        broken = [f"{i.task}/{i.item}" for i in self.items if not np.isfinite(i.log_likelihoods).all()]
        if broken:
            raise NotFiniteError(
                f"{self.model} gave a likelihood that is not a number on {len(broken)} items, first {broken[0]}; "
                "check its weights for NaN before trusting any score"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have items, in first-seen order."""
        return tuple(dict.fromkeys(item.task for item in self.items))

    def items_of(self, task: str) -> tuple[ItemResult, ...]:
        """Return one task's items.

        Raises:
            EvaluationError: if the task was not evaluated; a missing score is never 0.
        """
        items = tuple(item for item in self.items if item.task == task)
        if not items:
            raise EvaluationError(
                f"{self.model} was not evaluated on '{task}', only on {', '.join(self.tasks)}; "
                "add it to evaluate.tasks"
            )
        return items

    def accuracy(self, task: str) -> float:
        """Return the share of one task's items answered rightly, in 0..1."""
        items = self.items_of(task)
        return sum(item.is_correct for item in items) / len(items)

    def written_for(self, task: str) -> tuple[WrittenText, ...]:
        """Return what the model wrote on one task's prompts, empty if it was not asked to."""
        return tuple(text for text in self.written if text.task == task)


@dataclass(frozen=True)
class TaskComparison:
    """How the candidate did beside the baseline on the same items of one task; shares are in 0..1.

    Attributes:
        task: the task's name, such as `medical`.
        num_items: items both models answered.
        chance: accuracy of guessing.
        baseline_accuracy: share the baseline answered rightly.
        candidate_accuracy: share the candidate answered rightly.
        difference: candidate minus baseline accuracy.
        difference_low: lower end of its 95 % interval.
        difference_high: upper end of its 95 % interval.
        share_kept: accuracy above chance, candidate over baseline; NaN where the baseline only guesses.
        share_kept_low: lower end of its 95 % interval.
        share_kept_high: upper end of its 95 % interval.
        gained: items only the candidate answered rightly.
        lost: items only the baseline answered rightly.
        p_value: of McNemar's exact test that gains and losses are equally likely.
        noise: by how much two draws of as many items, asked of the baseline alone, differ in 95 of 100 cases.
    """

    task: str
    num_items: int
    chance: float
    baseline_accuracy: float
    candidate_accuracy: float
    difference: float
    difference_low: float
    difference_high: float
    share_kept: float
    share_kept_low: float
    share_kept_high: float
    gained: int
    lost: int
    p_value: float
    noise: float = float("nan")

    @property
    def effect(self) -> float:
        """The difference in units of the noise: between -1 and 1, other questions could have made it."""
        return self.difference / self.noise if self.noise > 0 else float("nan")
