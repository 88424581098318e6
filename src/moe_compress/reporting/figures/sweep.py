"""Accuracy against size of every plan a sweep tried, and its choice."""

from __future__ import annotations

from collections.abc import Iterator

from moe_compress.reporting.content import CompressionReport
from moe_compress.reporting.figures.drawing import Illustration
from moe_compress.reporting.sweep import sweep_figure


def illustrate(report: CompressionReport) -> Iterator[Illustration]:
    """Yield the plot, where the run carried out a sweep's choice."""
    sweep = report.sweep
    if sweep is None:
        return
    choice = sweep.choice
    means = (
        f"The choice, {choice.method} with {100 * choice.fraction_dropped:g} % of the experts dropped, answers "
        f"{100 * choice.accuracy:.1f} % of its items rightly, the base model {100 * sweep.base_accuracy:.1f} %."
        if choice
        else "No plan passed."
    )
    yield Illustration(
        "sweep",
        lambda width: sweep_figure(sweep, width),
        "Accuracy against size of every plan that was tried, and the choice",
        "Each plan's accuracy over the bytes it leaves; lines through points are 95 % intervals, the dashed line "
        "is guessing, and plans that were given up early are shown by the items they were asked.",
        means,
    )
