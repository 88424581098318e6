"""A benchmark task: a name and multiple-choice items selected from a JSON lines file, always the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from moe_compress.errors import DataError, NotFiniteError
from moe_compress.types import ItemResult, digest_of

QUESTION_FORMAT = "Question: {question}\nAnswer:"
CHOICE_FORMAT = " {choice}"


@dataclass(frozen=True)
class BenchmarkItem:
    """One question with its choices.

    Attributes:
        id: the item's id, unique in its task.
        question: the question, without the label `Question:`.
        choices: two or more different answers.
        answer: index of the right choice.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def context(self) -> str:
        """The text the model reads before each choice."""
        return QUESTION_FORMAT.format(question=self.question)

    @property
    def continuations(self) -> tuple[str, ...]:
        """The texts whose likelihoods answer the question, one per choice."""
        return tuple(CHOICE_FORMAT.format(choice=choice) for choice in self.choices)


@dataclass(frozen=True)
class BenchmarkTask:
    """The items of one task that a model is asked, in the order of their file.

    Attributes:
        name: the task's name in results and error messages.
        items: the selected items.
    """

    name: str
    items: tuple[BenchmarkItem, ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise DataError(f"task '{self.name}' has no items; add lines to its file or raise its limit")

    @property
    def digest(self) -> str:
        """The sha256 of what the model is asked: the items and how they are put."""
        return digest_of([QUESTION_FORMAT, CHOICE_FORMAT, self.rows()])

    def harness_config(self) -> dict[str, Any]:
        """Return the task as lm-evaluation-harness describes one, all but the data set itself."""
        return {
            "task": self.name,
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": QUESTION_FORMAT.replace("{question}", "{{question}}"),
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": CHOICE_FORMAT.format(choice=""),
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the items as plain rows, which `harness_config` names the fields of."""
        return [asdict(item) | {"choices": list(item.choices)} for item in self.items]

    def results(self, log_likelihoods: Sequence[Sequence[float]]) -> tuple[ItemResult, ...]:
        """Return each item with the choice a model finds likeliest.

        Args:
            log_likelihoods: of each item's choices, in nats, in the order of `items`.

        Raises:
            NotFiniteError: if one is not a finite number.
        """
        return tuple(self._result(item, values) for item, values in zip(self.items, log_likelihoods, strict=True))

    def _result(self, item: BenchmarkItem, values: Sequence[float]) -> ItemResult:
        if not np.isfinite(values).all():
            raise NotFiniteError(
                f"item '{item.id}' of task '{self.name}' got the log-likelihoods {list(values)}; "
                "check the model's weights for NaN before trusting any score"
            )
        return ItemResult(self.name, item.id, tuple(map(float, values)), int(np.argmax(values)), item.answer)


def load_task(name: str, file: Path | str, limit: int | None = None, seed: int = 0) -> BenchmarkTask:
    """Read a task's file and select its items.

    Args:
        name: the task's name.
        file: JSON lines with `id`, `question`, `choices` and `answer`.
        limit: how many items to ask; None asks all.
        seed: which items a limit selects.

    Raises:
        DataError: if the file is missing or a line is not an item, naming line and field.
    """
    items = read_items(Path(file))
    return BenchmarkTask(name, items if limit is None else select_items(items, limit, seed))


def select_items(items: Sequence[BenchmarkItem], limit: int, seed: int) -> tuple[BenchmarkItem, ...]:
    """Return at most `limit` items, in the order given.

    The items with the smallest hash of seed and id are taken, so that a larger limit only adds items, and
    reordering or extending the file moves few.
    """
    ranked = sorted(items, key=lambda item: sha256(f"{seed}/{item.id}".encode()).digest())
    chosen = {item.id for item in ranked[:limit]}
    return tuple(item for item in items if item.id in chosen)


def read_items(file: Path) -> tuple[BenchmarkItem, ...]:
    """Read every item of a JSON lines file.

    Raises:
        DataError: if the file is missing or a line is not an item, naming line and field.
    """
    items = tuple(_parse_item(row, place) for place, row in read_rows(file))
    repeated = [item_id for item_id, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise DataError(f"{file} uses the id '{repeated[0]}' more than once; give each item its own")
    return items


def read_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place, for error messages, and the object of each line of a JSON lines file.

    Raises:
        DataError: if the file is missing or a line is not an object.
    """
    if not file.is_file():
        raise DataError(f"no file {file}; put it there or correct the name where it is asked for")
    # `splitlines` would also cut at marks such as U+2028, which JSON allows inside a text.
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place} is not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{place} is {line[:40]!r}, not an object; write one object a line")
        yield place, row


def _parse_item(row: Mapping[str, Any], place: str) -> BenchmarkItem:
    for name in ("id", "question"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(f"{place}: field '{name}' is {row.get(name)!r}; it must be a text that is not empty")
    choices = row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise DataError(f"{place}: field 'choices' is {choices!r}; it must be a list of texts that are not empty")
    if len(choices) < 2 or len(set(choices)) != len(choices):
        raise DataError(f"{place}: field 'choices' is {choices!r}; give two or more that differ")
    answer = row.get("answer")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(f"{place}: field 'answer' is {answer!r}; it must be an index in 0..{len(choices) - 1}")
    return BenchmarkItem(row["id"], row["question"], tuple(choices), answer)
