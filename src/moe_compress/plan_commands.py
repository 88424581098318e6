"""`kedro plan`: show, compare and check plans, and carry them between this project's format and others'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_compress.command_line import as_json, command, print_content
from moe_compress.errors import PlanError

if TYPE_CHECKING:
    from moe_compress.pipelines.plans import PlanSource
    from moe_compress.types import CompressionPlan

EXIT_CODES = "Exit codes: 0 fine, 1 refused or does not fit, 2 wrong usage."

_FORMATS = ("easy_ep", "c_prune", "vllm_ascend", "plan")


@click.group(name="plan", epilog=EXIT_CODES)
def plan() -> None:
    """Look at plans: which experts stay of each layer, and how they merge.

    PLAN is a file, or the name of a domain for its newest plan. A file may also be EASY-EP's mask, C-Prune's list
    of pruned experts or vLLM-Ascend's ordered lists; these do not say which model they are for: give --checkpoint.
    """


def of_model(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what other projects' formats do not."""
    options = (
        click.option("--checkpoint", type=click.Path(path_type=Path), help="The model the plan is for."),
        click.option("--groups", type=click.Choice(["balanced", "flatten"]), default="balanced", show_default=True,
                     help="What becomes of a router's groups."),
        click.option("--keep", type=click.IntRange(1), help="Experts of each layer that stay of an ordered list."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def read_source(place: str, checkpoint: Path | None, groups: Any, keep: int | None) -> PlanSource:
    """Return the plan at a place on the command line; heavy modules load here, not when Kedro lists commands."""
    from moe_compress.pipelines.plans import read_source

    return read_source(place, checkpoint, groups, keep)


@command(
    plan, "show", EXIT_CODES, "kedro plan show medical", "kedro plan show mask.json --checkpoint models/deepseek-r1"
)
@click.argument("place", metavar="PLAN")
@of_model
@as_json
def show(place: str, is_json: bool, **model: Any) -> None:
    """Show what a plan keeps of each layer, how close each cut was, and where the plan came from."""
    from moe_compress.pipelines.plans import describe
    from moe_compress.reporting.plan_table import print_plan

    described = describe(read_source(place, **model))
    print_content(described, is_json, print_plan)


@command(
    plan,
    "compare",
    EXIT_CODES,
    "kedro plan compare medical finance",
    "kedro plan compare medical old/plan.json --json",
)
@click.argument("first", metavar="PLAN")
@click.argument("second", metavar="OTHER")
@of_model
@as_json
def compare(first: str, second: str, is_json: bool, **model: Any) -> None:
    """Compare which experts two plans of one model keep: overlap is those both keep over those either keeps."""
    from moe_compress.pipelines.plans import compare as compare_plans
    from moe_compress.reporting.plan_table import print_comparison

    compared = compare_plans(read_source(first, **model), read_source(second, **model))
    print_content(compared, is_json, print_comparison)


@command(
    plan,
    "check",
    EXIT_CODES,
    "kedro plan check medical data/01_raw/reference_model",
    "kedro plan check mask.json models/deepseek-r1 --json",
)
@click.argument("place", metavar="PLAN")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--groups", type=click.Choice(["balanced", "flatten"]), default="balanced", show_default=True,
              help="What becomes of a router's groups, where the file does not say.")  # fmt: skip
@click.option("--keep", type=click.IntRange(1), help="Experts of each layer that stay of an ordered list.")
@click.option("--weights", type=click.Choice(["keep", "bfloat16"]), default="keep", show_default=True,
              help="What becomes of quantised weights (rewrite.weights).")  # fmt: skip
@click.option("--mtp", type=click.Choice(["prune", "drop"]), default="prune", show_default=True,
              help="What becomes of layers for multi-token prediction (rewrite.mtp).")  # fmt: skip
@as_json
def check(place: str, checkpoint: Path, is_json: bool, weights: Any, mtp: Any, **model: Any) -> int:
    """Check a plan against a checkpoint: does it fit, how large is what it makes, and who can load that.

    Reads names and shapes only.
    """
    from moe_compress.pipelines.plans import check_source
    from moe_compress.reporting.plan_table import print_check

    checked = check_source(place, checkpoint, weights=weights, mtp=mtp, **model)
    print_content(checked, is_json, print_check)
    return 0 if checked["fits"] else 1


@command(
    plan,
    "import",
    EXIT_CODES,
    "kedro plan import mask.json plan.json --checkpoint models/deepseek-r1",
    "kedro plan import ordered.jsonl plan.json --checkpoint models/deepseek-r1 --keep 128",
)
@click.argument("source", metavar="FILE")
@click.argument("destination", type=click.Path(path_type=Path))
@of_model
def import_plan(source: str, destination: Path, **model: Any) -> None:
    """Turn a published mask or list into a plan of this project, to show, compare, or carry out (select.from)."""
    from moe_compress.plans.document import write_document

    found = read_source(source, **model)
    _write(write_document(found.plan), destination)
    click.echo(f"{destination}: {_summary(found.plan)}")


@command(
    plan,
    "export",
    EXIT_CODES,
    "kedro plan export medical mask.json --format easy_ep",
    "kedro plan export medical --format c_prune",
)
@click.argument("place", metavar="PLAN")
@click.argument("destination", type=click.Path(path_type=Path), required=False)
@click.option("--format", "name", type=click.Choice(_FORMATS), required=True, help="Whose format.")
@of_model
def export_plan(place: str, destination: Path | None, name: Any, **model: Any) -> None:
    """Write a plan in another project's format, to a file or to the terminal; only plans that prune have one."""
    from moe_compress.plans.formats import EXPORTS

    text = EXPORTS[name](read_source(place, **model).plan)
    if destination is None:
        click.echo(text)
    else:
        _write(text, destination)


def _write(text: str, destination: Path) -> None:
    from moe_compress.atomic import write_atomically

    if destination.exists():
        raise PlanError(f"{destination} exists already; remove it or give another name")
    write_atomically(destination, text.encode())


def _summary(plan: CompressionPlan) -> str:
    counts = plan.new_layout.num_experts
    return f"keeps {sum(counts)} of {sum(plan.layout.num_experts)} experts in {len(counts)} layers"
