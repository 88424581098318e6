"""The project's commands: Kedro's `run`, which here skips what is up to date and ends errors in one sentence."""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.config import OmegaConfigLoader
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import CONTEXT_SETTINGS
from kedro.utils import find_kedro_project

from moe_compress.command_line import describe, fail
from moe_compress.compress_commands import compress
from moe_compress.errors import MoeCompressError
from moe_compress.export_commands import export
from moe_compress.plan_commands import plan
from moe_compress.tracking_commands import SERVER_AWAY, send_kept, tracking

if TYPE_CHECKING:
    from moe_compress.registry.delivery import Delivery


@click.group(context_settings=CONTEXT_SETTINGS, name=__file__)
def cli() -> None:
    """Compress Mixture-of-Experts models for a domain."""


def run_resumably(kedro: Callable[..., Any]) -> Callable[..., Any]:
    """Return Kedro's run command, skipping outputs whose key is unchanged and shortening users' errors."""

    @wraps(kedro)
    def run(fresh: bool, **options: Any) -> Any:
        options["only_missing_outputs"] = not fresh
        # Relative places, the tracking store's among them, are the project's, wherever the command is typed.
        os.chdir(find_kedro_project(Path.cwd()) or Path.cwd())
        if os.environ.get("RANK", "0") != "0":
            track_nowhere()
        try:
            names = [*options["pipelines"], *filter(None, [options["pipeline"]])]
            check_pipelines(names)
            options |= {"pipelines": without_collecting(names, options), "pipeline": None}
            with stopping_on_sigterm():
                result = kedro(**options)
        except Exception as error:
            close_tracking("FAILED")
            send_kept()
            fail(describe(error))
        except BaseException:  # Ctrl-C or SIGTERM, of which Kedro tells nobody
            close_tracking("KILLED")
            raise
        if code := exit_code(send_kept()):
            sys.exit(code)
        return result

    return run


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Have SIGTERM, by which CI and clusters stop a job, unwind a run as Ctrl-C does; a second one kills it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal arrives there
        return

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def exit_code(delivery: Delivery | None) -> int:
    """Return the code of a run that went well, by what became of the registrations that were kept."""
    if delivery and delivery.refused_registrations:
        return 1
    return SERVER_AWAY if delivery and delivery.registrations else 0


def track_nowhere() -> None:
    """Keep a rank of `torchrun` other than the first from tracking the run that all ranks do together."""
    folder = tempfile.mkdtemp(prefix="moe-compress-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"


def close_tracking(status: str) -> None:
    """End a run that kedro-mlflow opened and left open; MLflow itself would have it finished.

    Args:
        status: `FAILED` by an error before the first node, `KILLED` by whoever stopped it.
    """
    import mlflow

    while mlflow.active_run() is not None:
        mlflow.end_run(status)


def check_pipelines(names: list[str]) -> None:
    """Do nothing if all pipelines are registered.

    Raises:
        MoeCompressError: naming the first that is not.
    """
    from difflib import get_close_matches

    from kedro.framework.project import pipelines

    # A run sets the same names, and Kedro builds all pipelines again where they are others than before.
    pipelines.set_requested(names)
    for name in names:
        if name not in pipelines:
            known = sorted(set(pipelines) - {"__default__"})
            close = get_close_matches(name, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            domain = name.partition("_")[2] or name
            block = f"{domain}: {{name: {domain}, registered_model: moe-{domain}}}"
            raise MoeCompressError(
                f"no pipeline '{name}'{hint}; for a new domain write '{block}' under domains in "
                f"conf/base/parameters_domains.yml; available: {', '.join(known)}"
            )


def without_collecting(names: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Return the pipelines to run: where a domain's plan is given (`select.from`), the one that does not collect.

    Args:
        names: the pipelines asked for, none for the default.
        options: those of `kedro run` that decide its parameters.
    """
    from kedro.framework.project import pipelines, settings

    from moe_compress.pipelines.run_keys import find_source

    loader = OmegaConfigLoader(
        options["conf_source"] or str(Path.cwd() / settings.CONF_SOURCE),
        env=options["env"],
        runtime_params=options["params"] or None,
        **settings.CONFIG_LOADER_ARGS,
    )
    parameters = loader["parameters"]
    wanted = names or [name for name in ("prune_medical",) if name in pipelines]
    given = {f"prune_{domain}" for domain in parameters["domains"] if find_source(parameters, domain)}
    applied = {name: f"apply_{name.removeprefix('prune_')}" for name in given}
    return [applied[name] if applied.get(name) in pipelines else name for name in wanted]


run = copy.copy(kedro_run)
run.params = [
    *kedro_run.params,
    click.Option(["--fresh"], is_flag=True, help="Run every node again, up to date or not."),
]
assert kedro_run.callback is not None
run.callback = run_resumably(kedro_run.callback)
run.epilog = (
    "Exit codes: 0 done, 1 failed (a gate's failure among others), 2 wrong usage, "
    f"{SERVER_AWAY} done but for the registration, which the registry could not take: kedro tracking sync."
)
cli.add_command(run)
cli.add_command(plan)
cli.add_command(tracking)
compress.add_command(export)
cli.add_command(compress)
