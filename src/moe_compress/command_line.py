"""How every command ends: what a user can mend is one sentence on standard error and exit code 1."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.validation.exceptions import ParameterValidationError
from pydantic import ValidationError

from moe_compress.errors import MoeCompressError
from moe_compress.registry.client import without_credentials

as_json = click.option("--json", "is_json", is_flag=True, help="Print JSON for machines.")

Register = Callable[[Callable[..., int | None]], click.Command]


def command(group: click.Group, name: str, exit_codes: str, *examples: str) -> Register:
    """Return a decorator that makes a command of a group; the function returns its exit code, or None for 0.

    Args:
        group: the commands it belongs to.
        name: what is typed.
        exit_codes: what `--help` says of them.
        examples: whole commands that `--help` shows.
    """

    def register(run: Callable[..., int | None]) -> click.Command:
        @wraps(run)
        def guarded(**options: Any) -> None:
            try:
                sys.exit(run(**options) or 0)
            except Exception as error:
                fail(describe(error))

        shown = "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])
        return group.command(name, epilog=f"{shown}\n\n{exit_codes}")(guarded)

    return register


def print_content(content: dict[str, Any], is_json: bool, show_table: Callable[[dict[str, Any]], None]) -> None:
    """Print what a command found, for a machine or for a person."""
    if is_json:
        click.echo(json.dumps(content, indent=1))
    else:
        show_table(content)


def describe(error: Exception) -> str:
    """Return what a user can mend as one sentence.

    Raises:
        Exception: the error itself, if it is none of a user's making.
    """
    if isinstance(error, ParameterValidationError):
        return describe_validation(str(error))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MoeCompressError):
            return str(cause)
        if isinstance(cause, ValidationError):
            return describe_fault(cause.title, cause.errors()[0]["loc"], cause.errors()[0]["msg"])
        if isinstance(cause, MissingConfigException):
            return f"{' '.join(str(cause).split())}; see conf/ for the environments there are"
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" where {cause.filename} is written" if cause.filename else ""
            return f"the disk is full{place}; free space and run again without --fresh, which keeps what is done"
        if type(cause).__name__ == "MlflowException":
            return without_credentials(f"MLflow failed: {' '.join(str(cause).split())}; check MLFLOW_TRACKING_URI")
        cause = cause.__cause__
    raise error


def describe_validation(message: str) -> str:
    """Return Kedro's report of a bad parameter as one sentence: the parameter, what is wrong, the next step."""
    found = re.search(r"parameter '(?P<block>[^']+)': .*?\n(?P<key>\S+)\n\s+(?P<fault>[^\[]+)\[", message, re.S)
    if not found:
        return " ".join(message.split())
    return describe_fault(found["block"], (found["key"],), found["fault"])


def describe_fault(block: str, place: Sequence[int | str], fault: str) -> str:
    """Return what is wrong with one parameter as one sentence."""
    said = "is not a parameter" if "Extra inputs" in fault else fault.strip().lower()
    return f"{'.'.join(map(str, (block, *place)))}: {said}; see conf/base for the parameters there are"


def fail(message: str) -> None:
    """Print one sentence to standard error and exit with code 1."""
    click.secho(f"Error: {message}", fg="red", err=True)
    sys.exit(1)
