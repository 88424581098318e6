"""Judge what a model wrote as a program: it is right where it passes the problem's tests, run in confinement."""

from __future__ import annotations

import base64
import json
import pickletools
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_compress.errors import DataError
from moe_compress.evaluation.sandbox import ProgramResult, run_program

Row = Mapping[str, Any]

_FENCE = re.compile(
    r"`{3,}[ \t]*([\w+-]*)[ \t]*(?:\w+=[^\n`]*|\{[^\n`]*)?\n(.*?)(?:^[ \t]*`{3,}|`{3,}[ \t]*$|\Z)", re.S | re.M
)
"""A block's label and its text. Words may stand before it in its line; one never closed ends with the text."""

_STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
_GIVEN = "\n".join([*(f"from {module} import *" for module in _STARRED), f"import {', '.join(_STARRED)}"])
"""What LiveCodeBench's own script gives programs; later names hide earlier ones, as there."""
_NAMES = f"""
names = {{"__name__": "__main__"}}
exec({_GIVEN!r}, names)
names["sys"].setrecursionlimit(50_000)
"""

_INPUT = """
import builtins, decimal, io, sys

def open_input(file, mode="r", *rest, _open=open, **named):
    if file not in (0, "/dev/stdin"):
        return _open(file, mode, *rest, **named)
    return io.BytesIO(given) if "b" in mode else io.TextIOWrapper(io.BytesIO(given))

def is_same(line, other):
    try:
        return line == other or [*map(decimal.Decimal, line.split())] == [*map(decimal.Decimal, other.split())]
    except decimal.InvalidOperation:
        return False

builtins.open = open_input
sys.stdin = open_input(0)
sys.stdout = said = io.TextIOWrapper(io.BytesIO())
"""
"""How a program finds its input, bytes called `given`, and how a line it says is compared."""


def judge_program(kind: str, row: Row, text: str) -> ProgramResult:
    """Return whether a program passes all tests of its problem; the first failure ends the judgement.

    Args:
        kind: `human_eval` or `live_code_bench`, which say what a row holds.
        row: the problem.
        text: what the model wrote.

    Raises:
        EvaluationError: if this machine cannot confine a process, so that nothing was run.
    """
    result = ProgramResult(False, "the problem has no tests")
    for program in _PROGRAMS[kind](row, text):
        result = run_program(program, seconds=_SECONDS[kind])
        if not result.passed:
            break
    return result


def find_code(text: str) -> str | None:
    """Return the last fenced block of Python in a text, else the last of any label, None where there is none."""
    blocks: list[tuple[str, str]] = _FENCE.findall(text)
    python = [block for block in blocks if block[0].lower().startswith("py")]
    return (python or blocks)[-1][1] if blocks else None


def _human_eval(row: Row, text: str) -> Iterator[str]:
    """Yield the one program: the prompt, what was written after it, and the tests."""
    block = find_code(text)
    # A whole function in a block stands after the prompt, which by itself is one that does nothing.
    written = text if block is None else f"\n{block}"
    yield f"{row['prompt']}{written}\n{row['test']}\ncheck({row['entry_point']})\n"


def _live_code_bench(row: Row, text: str) -> Iterator[str]:
    """Yield a program per test: what was written, given the test's input, and a check of what it says."""
    code = find_code(text) or text
    name = json.loads(row["metadata"] or "{}").get("func_name")
    for test in [*json.loads(row["public_test_cases"]), *read_private_tests(row["private_test_cases"])]:
        if test["testtype"] == "stdin":
            yield _with_input(code, test["input"], test["output"])
        else:
            arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
            yield _with_arguments(code, name, arguments, json.loads(test["output"]))


def _with_input(code: str, given: str, expected: str) -> str:
    lines = [line.strip() for line in expected.strip().split("\n")]
    return (
        f"given = {given.encode()!r}\n{_INPUT}{_NAMES}"
        "try:\n"
        f"    {_run(code)}"
        "except SystemExit:\n"
        "    pass\n"
        "said.flush()\n"
        "lines = [line.strip() for line in said.buffer.getvalue().decode().strip().split('\\n')]\n"
        f"assert len(lines) == {len(lines)} and all(map(is_same, lines, {lines!r}))\n"
    )


def _with_arguments(code: str, name: str | None, arguments: list[Any], expected: Any) -> str:
    function = f"names['Solution']().{name}" if "class Solution" in code else f"names[{name!r}]"
    return (
        f"{_NAMES}{_run(code)}"
        "import json\n"
        f"result = {function}(*{arguments!r})\n"
        f"assert json.loads(json.dumps(result)) == {expected!r}\n"
    )


def _run(code: str) -> str:
    """Return a line that runs a program by itself, so that it may begin with imports from `__future__`."""
    return f"exec(compile({code!r}, '<program>', 'exec'), names)\n"


def read_private_tests(packed: str) -> list[dict[str, Any]]:
    """Return LiveCodeBench's hidden tests, which it ships as a pickled JSON text, compressed.

    The pickle is read as a list of instructions and never run: it must hold one text and nothing else.

    Raises:
        DataError: if it holds anything else.
    """
    if packed.lstrip().startswith("["):
        tests: list[dict[str, Any]] = json.loads(packed)
        return tests
    instructions = list(pickletools.genops(zlib.decompress(base64.b64decode(packed))))
    texts = [argument for _, argument, _ in instructions if isinstance(argument, str)]
    if len(texts) != 1 or {code.name for code, _, _ in instructions} - _ONE_TEXT:
        raise DataError(
            "the hidden tests of a LiveCodeBench problem are not one pickled text; take the benchmark out of its "
            "suite or pin an earlier commit of its data set"
        )
    tests = json.loads(texts[0])
    return tests


_ONE_TEXT = frozenset(
    {
        "PROTO",
        "FRAME",
        "BINUNICODE",
        "BINUNICODE8",
        "SHORT_BINUNICODE",
        "MEMOIZE",
        "STOP",
        "BINPUT",
        "UNICODE",
        "PUT",
    }
)
_PROGRAMS: Mapping[str, Callable[[Row, str], Iterator[str]]] = {
    "human_eval": _human_eval,
    "live_code_bench": _live_code_bench,
}
_SECONDS = {"human_eval": 3, "live_code_bench": 6}
"""Processor seconds per run, as the benchmarks' own scripts have them."""
