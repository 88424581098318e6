"""The project's commands: Kedro's `run`, which here skips what is up to date and ends errors in one sentence."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import CONTEXT_SETTINGS
from kedro.validation.exceptions import ParameterValidationError

from moe_compress.errors import MoeCompressError


@click.group(context_settings=CONTEXT_SETTINGS, name=__file__)
def cli() -> None:
    """Compress Mixture-of-Experts models for a domain."""


def run_resumably(kedro: Callable[..., Any]) -> Callable[..., Any]:
    """Return Kedro's run command, skipping outputs whose key is unchanged and shortening users' errors."""

    @wraps(kedro)
    def run(fresh: bool, **options: Any) -> Any:
        options["only_missing_outputs"] = not fresh
        try:
            check_pipelines([*options["pipelines"], *filter(None, [options["pipeline"]])])
            return kedro(**options)
        except ParameterValidationError as error:
            fail(describe_validation(str(error)))
        except Exception as error:
            fail(str(find_cause(error)))

    return run


def find_cause(error: BaseException) -> MoeCompressError:
    """Return the error of ours behind one of Kedro's, which wraps what a dataset raises.

    Raises:
        BaseException: the error itself, if none of ours is behind it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MoeCompressError):
            return cause
        cause = cause.__cause__
    raise error


def check_pipelines(names: list[str]) -> None:
    """Do nothing if all pipelines are registered.

    Raises:
        MoeCompressError: naming the first that is not.
    """
    from difflib import get_close_matches

    from kedro.framework.project import pipelines

    for name in names:
        if name not in pipelines:
            known = sorted(set(pipelines) - {"__default__"})
            close = get_close_matches(name, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise MoeCompressError(
                f"no pipeline '{name}'{hint}; available: {', '.join(known)}; "
                "a new domain needs a block under 'domains' in conf/base/parameters_domains.yml"
            )


def describe_validation(message: str) -> str:
    """Return Kedro's report of a bad parameter as one sentence: the parameter, what is wrong, the next step."""
    found = re.search(r"parameter '(?P<block>[^']+)': .*?\n(?P<key>\S+)\n\s+(?P<fault>[^\[]+)\[", message, re.S)
    if not found:
        return " ".join(message.split())
    fault = "is not a parameter" if "Extra inputs" in found["fault"] else found["fault"].strip().lower()
    return f"{found['block']}.{found['key']}: {fault}; see conf/base for the parameters there are"


def fail(message: str) -> None:
    """Print one sentence to standard error and exit with code 1."""
    click.secho(f"Error: {message}", fg="red", err=True)
    sys.exit(1)


run = copy.copy(kedro_run)
run.params = [
    *kedro_run.params,
    click.Option(["--fresh"], is_flag=True, help="Run every node again, up to date or not."),
]
assert kedro_run.callback is not None
run.callback = run_resumably(kedro_run.callback)
cli.add_command(run)
