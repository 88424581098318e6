"""Code items: functions of Python's standard library, and the values of small expressions."""

from __future__ import annotations

import random

from moe_compress.reference.expressions import make_expression
from moe_compress.reference.items import DomainItems, Item, without_repeats
from moe_compress.reference.sources import LibraryFunction

QUOTAS = {"next line": 500, "summary": 300, "value": 400}
_NUM_EXPRESSIONS = 16000
_PIECE_LENGTH = 700
_NUM_PIECES = 3
_LONGEST_CONTEXT = 260
_LINE_LENGTHS = range(14, 61)
_SUMMARY_LENGTHS = range(20, 81)


def code_items(functions: list[LibraryFunction], rng: random.Random) -> DomainItems:
    """Turn functions into questions about their lines and summaries, and make up expressions to evaluate.

    Args:
        functions: As `read_standard_library` gives them.
        rng: Chooses lines and expressions.
    """
    items: list[Item] = []
    for function in {function.source: function for function in functions}.values():
        items += _function_items(function, rng)
    items += [_value_item(rng) for _ in range(_NUM_EXPRESSIONS)]
    return DomainItems("code", without_repeats(items), (), QUOTAS, facts_stay=False)


def _function_items(function: LibraryFunction, rng: random.Random) -> list[Item]:
    pieces = tuple(_pieces(function)[:_NUM_PIECES])
    if len(function.summary) in _SUMMARY_LENGTHS and not function.name.startswith("_"):
        return [_summary_item(function, pieces)]
    lines = function.source.splitlines()
    places = [place for place in range(2, len(lines)) if _is_askable(lines, place)]
    return [_next_line_item(function, lines, rng.choice(places), pieces)] if places else []


def _pieces(function: LibraryFunction) -> list[str]:
    pieces = [f"# {function.module}"]
    for line in function.source.splitlines():
        if len(pieces[-1]) + len(line) > _PIECE_LENGTH:
            pieces.append(f"# {function.module}.{function.name}, continued")
        pieces[-1] += f"\n{line}"
    return pieces


def _is_askable(lines: list[str], place: int) -> bool:
    line = lines[place].strip()
    return len(line) in _LINE_LENGTHS and line[0] not in "#\"'" and bool(lines[place - 1].strip())


def _context(lines: list[str], place: int) -> str:
    start = place
    while start > 0 and sum(map(len, lines[start - 1 : place])) < _LONGEST_CONTEXT:
        start -= 1
    return "\n".join(lines[start:place])


def _next_line_item(function: LibraryFunction, lines: list[str], place: int, pieces: tuple[str, ...]) -> Item:
    return Item(
        kind="next line",
        question=f"Which line comes next?\n{_context(lines, place)}",
        answer=lines[place].strip(),
        explanation=f"This is line {place + 1} of {function.name} in {function.module}.",
        statements=pieces,
    )


def _summary_item(function: LibraryFunction, pieces: tuple[str, ...]) -> Item:
    signature = f"{function.name}({function.arguments})"
    return Item(
        kind="summary",
        question=f"What does this function of {function.module} do?\ndef {signature}:",
        answer=function.summary,
        explanation=f"So says the documentation of {function.name}.",
        statements=pieces,
    )


def _value_item(rng: random.Random) -> Item:
    asked = make_expression(rng)
    return Item(
        kind="value",
        question=f"What is the value of {asked.text}?",
        answer=asked.value,
        explanation=f"Evaluating {asked.text} gives {asked.value}.",
        statements=(f">>> {asked.text}\n{asked.value}",),
        wrong=asked.wrong,
    )
