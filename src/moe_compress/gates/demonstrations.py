"""Check demonstrations with plain code, cheapest first, before any heavy library is loaded."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_compress.errors import DataError, ParameterError

COLUMNS = ("id", "question", "answer")
Row = Mapping[str, object]


@dataclass(frozen=True)
class DemonstrationLimits:
    """What a set of demonstrations must keep to.

    Attributes:
        min_rows: the fewest rows worth collecting statistics from.
        min_tokens: the fewest tokens of a row's text.
        max_tokens: the most tokens of a row's text; more would be cut off.
    """

    min_rows: int = 1
    min_tokens: int = 1
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.min_rows < 1 or not 0 <= self.min_tokens <= self.max_tokens:
            raise ParameterError(
                f"demonstration limits min_rows={self.min_rows}, min_tokens={self.min_tokens}, "
                f"max_tokens={self.max_tokens} fit no data; "
                "use min_rows >= 1 and 0 <= min_tokens <= max_tokens"
            )


@dataclass(frozen=True)
class DemonstrationSet:
    """One domain's rows with what they are checked against.

    Attributes:
        domain: the domain's name.
        rows: the rows in file order, each with `id`, `question` and `answer`.
        token_lengths: tokens of each row's text, in the order of the rows.
        benchmark_questions: the questions the domain is measured with, which no row may repeat.
        source: the rows' file, for messages.
    """

    domain: str
    rows: Sequence[Row]
    token_lengths: Sequence[int]
    benchmark_questions: Sequence[str] = ()
    source: str = "demonstrations.jsonl"

    def __post_init__(self) -> None:
        if len(self.token_lengths) != len(self.rows):
            raise DataError(
                f"domain '{self.domain}' has {len(self.rows)} rows but {len(self.token_lengths)} "
                f"token lengths; count the tokens of every row of {self.source}"
            )

    def leaked(self) -> list[bool]:
        """Return for each row whether its question is also a benchmark question."""
        known = {normalised(question) for question in self.benchmark_questions}
        return [normalised(text_of(row, "question")) in known for row in self.rows]


def normalised(text: str) -> str:
    """Return the text as it is compared: one Unicode form, no case, single blanks, no end punctuation.

    Signs inside are kept, because `3 + 4` and `3 - 4` are different questions.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" .?!:;,")


def text_of(row: Row, column: str) -> str:
    """Return a row's text in one column; whatever is no text counts as empty."""
    value = row.get(column)
    return value.strip() if isinstance(value, str) else ""


def check_demonstrations(demonstrations: DemonstrationSet, limits: DemonstrationLimits) -> None:
    """Do nothing if the rows can be collected from.

    Raises:
        DataError: for the first kind of fault found, with how many rows have it and the first of them.
    """
    num_rows = len(demonstrations.rows)
    if num_rows < limits.min_rows:
        raise DataError(
            f"domain '{demonstrations.domain}' has {num_rows} demonstrations, "
            f"fewer than {limits.min_rows} (data.min_demonstrations); add rows to {demonstrations.source}"
        )
    for check in (_incomplete, _repeated_ids, _repeated_questions, _leaks, _odd_lengths):
        check(demonstrations, limits)


def _incomplete(demonstrations: DemonstrationSet, _: DemonstrationLimits) -> None:
    for column in COLUMNS:
        bad = [i for i, row in enumerate(demonstrations.rows) if not text_of(row, column)]
        _refuse(demonstrations, bad, f"has|have no text under '{column}'", "give every row one in")


def _repeated_ids(demonstrations: DemonstrationSet, _: DemonstrationLimits) -> None:
    bad = _repeats([text_of(row, "id") for row in demonstrations.rows])
    _refuse(demonstrations, bad, "repeats|repeat the id of an earlier row", "give each row its own in")


def _repeated_questions(demonstrations: DemonstrationSet, _: DemonstrationLimits) -> None:
    bad = _repeats([normalised(text_of(row, "question")) for row in demonstrations.rows])
    _refuse(demonstrations, bad, "asks|ask the question of an earlier row again", "keep one of each in")


def _leaks(demonstrations: DemonstrationSet, _: DemonstrationLimits) -> None:
    bad = [i for i, leaked in enumerate(demonstrations.leaked()) if leaked]
    _refuse(demonstrations, bad, "is|are also in its benchmark", "remove them from")


def _odd_lengths(demonstrations: DemonstrationSet, limits: DemonstrationLimits) -> None:
    low, high = limits.min_tokens, limits.max_tokens
    bad = [i for i, length in enumerate(demonstrations.token_lengths) if not low <= length <= high]
    seen = f" ({demonstrations.token_lengths[bad[0]]} in the first)" if bad else ""
    _refuse(
        demonstrations,
        bad,
        f"is|are outside data.min_tokens={low} to data.max_tokens={high} tokens{seen}",
        "shorten, lengthen or remove them in",
    )


def _repeats(keys: Sequence[str]) -> list[int]:
    """Return the positions of keys that stood earlier already."""
    first: dict[str, int] = {}
    return [i for i, key in enumerate(keys) if first.setdefault(key, i) != i]


def _refuse(demonstrations: DemonstrationSet, bad: Sequence[int], fault: str, remedy: str) -> None:
    """Raise a DataError if some rows are bad; `fault` starts with its verb for one row and for more.

    Rows are counted from 1, as editors count lines.
    """
    if not bad:
        return
    verbs, _, rest = fault.partition(" ")
    one, more = verbs.split("|")
    subject = f"1 demonstration of domain '{demonstrations.domain}' {one}"
    if len(bad) > 1:
        subject = f"{len(bad)} demonstrations of domain '{demonstrations.domain}' {more}"
    question = text_of(demonstrations.rows[bad[0]], "question")
    shown = question if len(question) <= 60 else f"{question[:57]}..."
    raise DataError(f"{subject} {rest} (first: {shown!r}, row {bad[0] + 1}); {remedy} {demonstrations.source}")
