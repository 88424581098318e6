"""The report in a terminal: verdict, size, quality and gates, readable from 80 columns on."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moe_compress.reporting import wording
from moe_compress.reporting.content import CompressionReport, QualityRow

_WIDTH = 100
_STYLES = {"passed": "green", "warning": "yellow", "failed": "bold red"}


def render_terminal(report: CompressionReport) -> RenderableType:
    """Return what `print_report` prints."""
    # Names come from users' files: they go in as Text, never as markup.
    return Group(
        Text(),
        _verdict(report),
        Text(),
        _size_table(report),
        _quality_table(report),
        *_tuning_tables(report),
        _gates_table(report),
    )


def print_report(report: CompressionReport, console: Console | None = None) -> None:
    """Print the report, at most 100 columns wide, to the terminal or the console given."""
    console = console or make_console()
    console.print(render_terminal(report), width=min(console.width, _WIDTH))


def make_console() -> Console:
    """Return the terminal, or a file as wide as a report."""
    # A log file has no width of its own, and Rich's guess of 80 would squeeze the names out.
    return Console(width=None if sys.stdout.isatty() else _WIDTH)


def _verdict(report: CompressionReport) -> RenderableType:
    style = "bold green" if report.gate_report.passed else "bold red"
    lines = [Text.assemble((report.headline, style), "   ", (report.domain, "bold"))]
    lines += [Text(wording.reason(failure), style="red") for failure in report.gate_report.failures]
    lines += [Text(report.summary), Text(report.release)]
    return Padding(Group(*lines), (0, 1))


def make_table(title: str, *columns: str) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(title, "bold"),
        title_justify="left",
        header_style="dim",
    )
    for index, column in enumerate(columns):
        # Values do not wrap, they would no longer align; names may.
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return table


def _size_table(report: CompressionReport) -> Table:
    before, after = report.baseline, report.candidate
    table = make_table("Size and speed", "", "Baseline", "Candidate", "Change")
    table.add_row("experts per layer", *report.experts_change, "")
    rows = (
        ("parameters", before.num_parameters, after.num_parameters, wording.count),
        ("weights on disk", before.num_bytes, after.num_bytes, wording.size),
    )
    for name, old, new, write in rows:
        table.add_row(name, write(old), write(new), wording.change(old, new))
    speeds = (wording.count(model.tokens_per_second) for model in (before, after))
    table.add_row("tokens per second", *speeds, report.speed_change)
    return table


def _quality_table(report: CompressionReport) -> Table:
    table = make_table(
        "Quality",
        "Task",
        "Baseline",
        "Candidate",
        "Difference",
        "Kept",
        "Perplexity",
    )
    for row in report.quality_rows:
        table.add_row(*_quality_cells(row), style="bold" if row.is_target else "")
    return table


def _quality_cells(row: QualityRow) -> tuple[Text | str, ...]:
    before, after = (wording.number(value, 3) for value in (row.baseline_perplexity, row.candidate_perplexity))
    perplexity = f"{before} → {after}"
    name = Text(row.name)
    if row.comparison is None:
        return (name, *[wording.MISSING] * 4, perplexity)
    result = row.comparison
    interval = wording.difference_interval(result)
    return (
        name,
        wording.percent(result.baseline_accuracy),
        wording.percent(result.candidate_accuracy),
        f"{wording.points(result.difference)} ({interval})",
        wording.percent(result.share_kept),
        perplexity,
    )


def _tuning_tables(report: CompressionReport) -> list[RenderableType]:
    """Return what tuning changed of the pruned model; nothing where nothing was tuned."""
    if report.tuning is None:
        return []
    table = make_table("Tuning", "Task", "Pruned", "Tuned", "Difference", "Perplexity")
    for row in report.tuning.rows(report.target_names, report.baseline, report.candidate):
        cells = [wording.MISSING] * 3
        if result := row.regained:
            interval = wording.difference_interval(result)
            shares = (result.baseline_accuracy, result.candidate_accuracy)
            cells = [*map(wording.percent, shares), f"{wording.points(result.difference)} ({interval})"]
        perplexity = " → ".join(wording.number(value, 3) for value in row.perplexities[1:])
        style = "bold" if row.name in report.target_names else ""
        table.add_row(Text(row.name), *cells, perplexity, style=style)
    return [table, Padding(Text(report.tuning.summary), (0, 1, 1, 1))]


def _gates_table(report: CompressionReport) -> Table:
    table = make_table("Gates", "Gate", "Observed", "Limit", "Verdict", "Severity")
    for outcome in report.gate_report.outcomes:
        verdict = wording.verdict(outcome)
        table.add_row(
            Text(outcome.name),
            wording.observed(outcome),
            wording.limit(outcome),
            Text(verdict, _STYLES[verdict]),
            outcome.severity,
        )
    return table
