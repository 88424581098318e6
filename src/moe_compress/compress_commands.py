"""`kedro compress`: is a new run needed, run it, promote what passed, go back, see where versions came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.utils import _split_params

from moe_compress.command_line import as_json, command, print_content
from moe_compress.tracking_commands import SERVER_AWAY

NEEDED = 10

EXIT_CODES = "Exit codes: 0 fine or nothing to do, 1 refused or failed, 2 wrong usage."
CHECK_CODES = f"Exit codes: 0 nothing to do, 1 failed, 2 wrong usage, {NEEDED} recompression is needed."
RUN_CODES = f"{EXIT_CODES[:-1]}, {SERVER_AWAY} done but for the registration: kedro tracking sync."


@click.group(name="compress", epilog=CHECK_CODES)
def compress() -> None:
    """Operate compressed models: check, run, promote, rollback, show, diff, verify.

    DOMAIN is a block under `domains` in the parameters; MODEL is a domain or a registered model.
    """


def of_run(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that decide what a run would be."""
    options = (
        click.option("--base", help="Another base model: a folder, hf://org/model@revision or models:/name@alias."),
        click.option("--env", "-e", help="Environment under conf/."),
        click.option("--params", callback=_split_params, default="", help="Parameters, as kedro run takes them."),
    )
    for option in reversed(options):
        function = option(function)
    return function


env_option = click.option("--env", "-e", help="Environment under conf/.")
version_option = click.option("--version", metavar="N|ALIAS", help="A number or an alias.")
by_option = click.option("--by", help="Who does it; the CI job's person or this machine's user if not given.")


def with_base(params: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Return the parameters of a run on the base model that is asked for; an empty address asks for none."""
    if not base:
        return params
    address = base if ":/" in base else Path(base).resolve().as_uri()
    return {**params, "base_model": address}


def check_for(domain: str, env: str | None, params: dict[str, Any]) -> dict[str, Any]:
    """Return whether a run is needed; heavy modules load here, not when Kedro lists commands."""
    from moe_compress.operations.check import check_domain
    from moe_compress.operations.project import open_project

    return check_domain(open_project(env, params), domain)


def find_model(name: str, env: str | None) -> str:
    """Return the registered model of a domain, or the name itself, with MLflow pointed at the project's store."""
    from moe_compress.operations.project import open_project

    return open_project(env).model_name(name)


@command(
    compress,
    "check",
    CHECK_CODES,
    "kedro compress check medical",
    "kedro compress check medical --base hf://Qwen/Qwen3-30B-A3B@main --json",
    "kedro compress check medical --base models:/base-model@champion",
)
@click.argument("domain")
@of_run
@as_json
def check(domain: str, base: str | None, env: str | None, params: dict[str, Any], is_json: bool) -> int:
    """Say whether a new run is needed, and why.

    New base weights, demonstrations, benchmarks, parameters, and code that a run depends on are reasons; a new
    commit of the base model's README is none. Downloads nothing.
    """
    from moe_compress.reporting.version_table import print_check

    checked = check_for(domain, env, with_base(params, base))
    print_content(checked, is_json, print_check)
    return NEEDED if checked["needed"] else 0


@command(
    compress,
    "run",
    RUN_CODES,
    "kedro compress run medical",
    "kedro compress run medical --base models:/base-model@champion",
    "kedro compress run medical --force",
)
@click.argument("domain")
@of_run
@click.option("--force", is_flag=True, help="Run although nothing changed; outputs that are up to date are kept.")
def run(domain: str, base: str | None, env: str | None, params: dict[str, Any], force: bool) -> None:
    """Run DOMAIN's pipeline where check finds a reason to.

    What passes its gates becomes the candidate.
    """
    from moe_compress.cli import run as kedro_run
    from moe_compress.reporting.version_table import print_check

    params = with_base(params, base)
    checked = check_for(domain, env, params)
    print_check(checked)
    if checked["needed"] or force:
        given = kedro_run.make_context("run", [f"--pipelines=prune_{domain}", *([f"--env={env}"] if env else [])])
        given.params["params"] = params
        kedro_run.invoke(given)


@command(
    compress,
    "promote",
    EXIT_CODES,
    "kedro compress promote medical --why 'reviewed with the clinic'",
    "kedro compress promote moe-medical --version 3",
)
@click.argument("model")
@click.option("--version", metavar="N", help="Its number; the candidate if not given.")
@by_option
@click.option("--why", default="passed its gates", show_default=True, help="The reason to keep.")
@click.option(
    "--folder", type=click.Path(path_type=Path, exists=True), help="A copy of its files, not to fetch them."
)
@env_option
@as_json
def promote(
    model: str,
    version: str | None,
    by: str | None,
    why: str,
    folder: Path | None,
    env: str | None,
    is_json: bool,
) -> None:
    """Make the candidate the champion.

    Its gates must have passed, and every file of it is hashed again; those in a store are fetched for that. The
    champion before it becomes `previous`. Twice is as once. A version that was rolled back must be named with
    --version.
    """
    from moe_compress.operations.promote import find_person, promote_model
    from moe_compress.reporting.version_table import print_promotion

    folder = folder.resolve() if folder else None
    done = promote_model(find_model(model, env), version, by or find_person(), why, folder)
    print_content(done, is_json, print_promotion)


@command(
    compress,
    "rollback",
    EXIT_CODES,
    "kedro compress rollback medical --why 'wrong doses in ticket 4711'",
)
@click.argument("model")
@by_option
@click.option("--why", default="", help="The reason to keep.")
@env_option
@as_json
def rollback(model: str, by: str | None, why: str, env: str | None, is_json: bool) -> None:
    """Make the champion before this one champion again.

    One step: the version that goes is marked, and promoted again only by its number.
    """
    from moe_compress.operations.promote import find_person, roll_back_model
    from moe_compress.reporting.version_table import print_promotion

    print_content(roll_back_model(find_model(model, env), by or find_person(), why), is_json, print_promotion)


@command(
    compress, "show", EXIT_CODES, "kedro compress show medical", "kedro compress show medical --version 2 --json"
)
@click.argument("model")
@version_option
@env_option
@as_json
def show(model: str, version: str | None, env: str | None, is_json: bool) -> None:
    """Show where a version came from, as a tree.

    The champion if none is named, else the candidate, else the newest.
    """
    from moe_compress.operations.lineage import describe_version, find
    from moe_compress.reporting.version_table import print_lineage

    print_content(describe_version(find(find_model(model, env), version)), is_json, print_lineage)


@command(
    compress,
    "diff",
    EXIT_CODES,
    "kedro compress diff medical 1 2",
    "kedro compress diff medical champion candidate --json",
    "kedro compress diff medical champion candidate --html comparison.html",
)
@click.argument("model")
@click.argument("first", metavar="N|ALIAS")
@click.argument("second", metavar="N|ALIAS")
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page, too.")
@env_option
@as_json
def diff(model: str, first: str, second: str, page: Path | None, env: str | None, is_json: bool) -> None:
    """Show in what two versions differ.

    Lineage, sizes, parameters, gates, measured values, and how far their plans keep the same experts.
    """
    from moe_compress.operations.lineage import compare_versions, find
    from moe_compress.reporting.version_page import write_comparison
    from moe_compress.reporting.version_table import print_difference

    page = page.resolve() if page else None
    name = find_model(model, env)
    compared = compare_versions(find(name, first), find(name, second))
    if page:
        write_comparison(compared, page)
    print_content(compared, is_json, print_difference)


@command(
    compress,
    "verify",
    "Exit codes: 0 intact, 1 damaged or failed, 2 wrong usage.",
    "kedro compress verify medical",
    "kedro compress verify medical --version 2 --folder /models/moe-medical",
)
@click.argument("model")
@version_option
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="A copy of its files.")
@env_option
@as_json
def verify(model: str, version: str | None, folder: Path | None, env: str | None, is_json: bool) -> int:
    """Hash a version's files again and name what changed.

    The champion if none is named.
    """
    from moe_compress.operations.lineage import find
    from moe_compress.operations.verify import verify_version
    from moe_compress.reporting.version_table import print_verification

    folder = folder.resolve() if folder else None
    verified = verify_version(find(find_model(model, env), version), folder)
    print_content(verified, is_json, print_verification)
    return 0 if verified["intact"] else 1
