"""Run a program a model wrote, in a process that can only compute, and say whether it came to its end."""

from __future__ import annotations

import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE

from moe_compress.errors import EvaluationError
from moe_compress.evaluation import confine

_WORDS_BYTES = 1000
_CLOCK = 5


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended.

    Attributes:
        passed: whether it ran to its end without raising.
        reason: what stopped it otherwise, such as `AssertionError` or `no end within 15 s`.
    """

    passed: bool
    reason: str = ""


def run_program(program: str, *, seconds: int = 3, num_bytes: int = 1 << 30) -> ProgramResult:
    """Run Python source text without files, processes, signals or network, within limits of time and memory.

    Args:
        program: the source text, tests included: it passes by running to its end.
        seconds: of processor time; more by the clock, so that a busy machine fails no program that is quick enough.
        num_bytes: of address space.

    Raises:
        EvaluationError: if this machine cannot confine a process, so that nothing was run.
    """
    token = secrets.token_hex(16)
    command = [sys.executable, "-I", "-S", str(Path(confine.__file__)), str(seconds), str(num_bytes), token]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, cwd="/") as process:
        assert process.stdin and process.stdout
        try:
            process.stdin.write(program.encode())
            process.stdin.close()
            process.wait(timeout=_CLOCK * seconds)
        except BrokenPipeError:  # it left before it read the program, and says why below
            process.wait()
        except subprocess.TimeoutExpired:
            process.kill()
            return ProgramResult(False, f"no end within {_CLOCK * seconds} s")
        # Read only now: a program that fills the pipe blocks itself, and not this process's memory.
        words = process.stdout.read(_WORDS_BYTES).decode(errors="replace")
    if process.returncode == confine.UNCONFINED:
        raise EvaluationError(
            f"this machine cannot confine generated code ({words}); run it on Linux 5.13 or newer with Landlock "
            "and seccomp, or leave evaluate.run_generated_code off"
        )
    if words == token:
        return ProgramResult(True)
    return ProgramResult(False, words or f"left with code {process.returncode}")
