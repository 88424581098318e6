"""Registered versions in a terminal: lineage as a tree, what differs, what is damaged, whether a run is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text
from rich.tree import Tree

from moe_compress.reporting import wording
from moe_compress.reporting.table import make_console, make_table

Described = Mapping[str, Any]


def print_check(checked: Described, console: Console | None = None) -> None:
    """Print whether a run is needed and why; `checked` as the command's JSON has it."""
    place = f"{checked['model']} version {checked['version']}" if checked["version"] else checked["model"]
    aliases = f" ({', '.join(checked['aliases'])})" if checked["aliases"] else ""
    if checked["needed"]:
        headline = Text(
            f"{checked['domain']}: recompression is needed; compared with {place}{aliases}", "bold yellow"
        )
    else:
        headline = Text(
            f"{checked['domain']}: nothing to do; {place}{aliases} is made from just this", "bold green"
        )
    base = f"base model: {checked['base']['name']} at {checked['base']['revision']}"
    reasons = [f"  - {reason['text']}" for reason in checked["reasons"]]
    _print(console, headline, *reasons, base, *(f"note: {text}" for text in checked["notes"]))


def print_promotion(done: Described, console: Console | None = None) -> None:
    """Print what a promotion or a rollback did."""
    if "instead_of" in done:
        said = f"{done['model']}: version {done['version']} is champion again, instead of {done['instead_of']}"
    elif done["moved"]:
        said = f"{done['model']}: version {done['version']} is champion now"
    else:
        said = f"{done['model']}: version {done['version']} is champion already, nothing was moved"
    aliases = ", ".join(f"{name} {version or 'none'}" for name, version in done["aliases"].items())
    _print(console, Text(said, "bold green"), f"aliases: {aliases}")


def print_lineage(described: Described, console: Console | None = None) -> None:
    """Print where a version came from as a tree."""
    aliases = f" ({', '.join(described['aliases'])})" if described["aliases"] else ""
    tree = Tree(Text(f"{described['version']}{aliases}", "bold"))
    for name, content in described.items():
        if isinstance(content, Mapping) and content:
            branch = tree.add(Text(name, "bold"))
            for leaf, value in content.items():
                branch.add(Text(f"{leaf}: {wording.MISSING if value is None else value}"))
    _print(console, tree)


def print_difference(compared: Described, console: Console | None = None) -> None:
    """Print in what two versions differ."""
    first, second = compared["versions"]
    parts: list[str | RenderableType] = [f"first:  {first}", f"second: {second}"]
    for title, part in (("Lineage", "lineage"), ("Parameters", "parameters"), ("Gates", "gates")):
        if rows := compared[part]:
            table = make_table(title, "", "First", "Second")
            for column in table.columns[1:]:
                column.justify, column.no_wrap = "left", False
            for name, (before, after) in rows.items():
                table.add_row(Text(name), *(Text(wording.brief(value)) for value in (before, after)))
            parts.append(table)
    if compared["measured"]:
        table = make_table("Measured", "", "First", "Second")
        for name, values in compared["measured"].items():
            table.add_row(Text(name), *(wording.number(value, 4) for value in values))
        parts.append(table)
    overlap = compared["plan_overlap"]
    if overlap is None:
        parts.append(f"plans' overlap: not known, {compared['plan_overlap_unknown']}")
    else:
        parts.append(f"plans' mean overlap over layers: {wording.percent(overlap)}")
    _print(console, *parts)


def print_verification(verified: Described, console: Console | None = None) -> None:
    """Print which files of a version are not what was registered."""
    if verified["intact"]:
        said = f"{verified['version']}: {verified['files']} files are what was registered"
        _print(console, Text(said, "bold green"), verified["folder"])
        return
    headline = Text(f"{verified['version']}: damaged, do not use {verified['folder']}", "bold red")
    _print(console, headline, *(f"  - {name}: {problem}" for name, problem in verified["damaged"].items()))


def _print(console: Console | None, *parts: str | RenderableType) -> None:
    console = console or make_console()
    for part in parts:
        # Names come from users' files: they go in as Text, never as markup.
        console.print(Text(part) if isinstance(part, str) else part)
