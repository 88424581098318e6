"""Plans in a terminal: what one keeps, how two agree, and whether one fits a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from moe_compress.reporting import wording
from moe_compress.reporting.table import make_console, make_table

Described = Mapping[str, Any]


def print_plan(plan: Described, console: Console | None = None) -> None:
    """Print what a plan keeps of each layer; `plan` as the command's JSON has it."""
    table = make_table("Layers", "Layer", "Experts", "Kept", "Merged", "Margin", "Lowest kept", "Highest dropped")
    for layer in plan["layers"]:
        cut = [wording.number(layer.get(name), 3) for name in ("margin", "lowest_kept", "highest_dropped")]
        merged = str(layer["merged"]) if plan["merges"] else wording.MISSING
        table.add_row(str(layer["layer"]), str(layer["experts"]), str(layer["kept"]), merged, *cut)
    experts = make_table("Experts that stay", "Layer", "Experts")
    experts.columns[1].justify, experts.columns[1].no_wrap = "left", False
    for layer in plan["layers"]:
        experts.add_row(str(layer["layer"]), name_groups(layer["groups"]))
    share = wording.percent(plan["kept"] / plan["experts"])
    lines = [
        f"{plan['path']}: {plan['method']} keeps {plan['kept']} of {plan['experts']} experts ({share})",
        f"top_k {plan['layout']['top_k']}, router groups {plan['layout']['num_groups']} ({plan['router_groups']}), "
        f"digest {plan['digest'][:12]}",
    ]
    origin = [f"{name}: {value}" for name, value in plan["provenance"].items()]
    _print(console, *lines, table, experts, Text("Provenance", "bold"), *origin)


def name_groups(groups: Sequence[Sequence[int]]) -> str:
    """Return experts as people list them: runs of experts that stay alone as `3-7`, those that merge as `2+9`."""
    runs: list[list[int]] = []
    words: list[str | list[int]] = []
    for members in groups:
        if len(members) > 1:
            words.append("+".join(map(str, members)))
        elif words and isinstance(words[-1], list) and words[-1][-1] + 1 == members[0]:
            words[-1].append(members[0])
        else:
            runs.append([members[0]])
            words.append(runs[-1])
    return ", ".join(word if isinstance(word, str) else _name_run(word) for word in words)


def _name_run(run: list[int]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def print_comparison(compared: Described, console: Console | None = None) -> None:
    """Print how far two plans agree; `compared` as the command's JSON has it."""
    table = make_table("Overlap", "Layer", "First keeps", "Second keeps", "Both", "Overlap", "Same groups")
    for layer in compared["layers"]:
        table.add_row(str(layer["layer"]), *_comparison_cells(layer))
    table.add_section()
    table.add_row("all", *_comparison_cells(compared), style="bold")
    first, second = (f"{each['path']} ({each['method']})" for each in compared["plans"])
    verdict = "the same plan" if compared["same"] else f"mean overlap {wording.percent(compared['mean_overlap'])}"
    _print(console, f"first:  {first}", f"second: {second}", verdict, table)


def _comparison_cells(row: Described) -> tuple[str, ...]:
    first, second = row["kept"]
    return str(first), str(second), str(row["both"]), wording.percent(row["overlap"]), str(row["same_groups"])


def print_check(checked: Described, console: Console | None = None) -> None:
    """Print whether a plan fits a checkpoint and what it makes of it; `checked` as the command's JSON has it."""
    if not checked["fits"]:
        _print(console, Text(f"does not fit {checked['checkpoint']}: {checked['reason']}", "bold red"))
        return
    table = make_table("What it makes", "", "Checkpoint", "Compressed", "Change")
    for name, write in (("experts", wording.count), ("parameters", wording.count), ("bytes", wording.size)):
        before, after = checked[name]
        table.add_row(name, write(before), write(after), wording.change(before, after))
    engines = make_table("Who is expected to load it", "Engine", "Verdict")
    engines.columns[1].justify, engines.columns[1].no_wrap = "left", False
    for engine in checked["engines"]:
        note = "" if engine["was_run"] else " (not run)"
        reasons = "".join(f"\n{reason['effect']}: {reason['text']}" for reason in engine["reasons"])
        engines.add_row(engine["engine"], Text(f"{engine['verdict']}{note}{reasons}"))
    settings = ", ".join(f"rewrite.{name}: {value}" for name, value in checked["rewrite"].items())
    _print(console, Text(f"fits {checked['checkpoint']}", "bold green"), f"with {settings}", table, engines)


def _print(console: Console | None, *parts: str | RenderableType) -> None:
    console = console or make_console()
    for part in parts:
        # Names come from users' files: they go in as Text, never as markup.
        console.print(Text(part) if isinstance(part, str) else part)
