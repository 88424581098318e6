"""What every domain hands over: items (a question, its answer, the same fact stated otherwise) and passages."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

QUESTION_FORMAT = "Question: {question}\nAnswer:"
NUM_CHOICES = 4
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Item:
    """One question with its answer.

    Attributes:
        kind: The kind of question, one table row in the results.
        question: The question, without the "Question:" label.
        answer: The short answer, as it stands among the choices.
        explanation: The worked answer, one or two sentences.
        statements: The same fact in other words; never in question form.
        wrong: Wrong answers; empty if they are drawn from the answers to other questions of this kind.
        slips: Wrong answers near the right one, which take the place of drawn ones in some of the questions.
        also_right: Answers that would be right too, so never among the wrong ones.
    """

    kind: str
    question: str
    answer: str
    explanation: str
    statements: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    slips: tuple[str, ...] = ()
    also_right: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The text a model is given before it answers."""
        return QUESTION_FORMAT.format(question=self.question)

    @property
    def short_form(self) -> str:
        """The question and its short answer."""
        return f"{self.prompt} {self.answer}"

    @property
    def long_form(self) -> str:
        """The question, its short answer and the explanation."""
        return f"{self.prompt} {self.answer}\n{self.explanation}"


@dataclass(frozen=True)
class DomainItems:
    """Everything one domain is built from.

    Attributes:
        domain: Name of the domain.
        items: All questions, in a repeatable order.
        passages: Texts that belong to no question.
        quotas: How many benchmark questions each kind gives.
        facts_stay: Whether training may state the facts behind benchmark questions in other words.
    """

    domain: str
    items: tuple[Item, ...]
    passages: tuple[str, ...]
    quotas: dict[str, int]
    facts_stay: bool


def text_key(text: str) -> str:
    """Return the text in lower case with every run of other than letters and digits as one blank."""
    return _NOT_ALPHANUMERIC.sub(" ", text.lower()).strip()


def without_repeats(items: list[Item]) -> tuple[Item, ...]:
    """Keep the first item of each question, in order."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(text_key(item.question), item)
    return tuple(first.values())


def some(rng: random.Random, options: tuple[str, ...], **words: object) -> str:
    """Fill one of the templates, chosen at random."""
    return rng.choice(options).format(**words)
