"""The figures of the results page: by fraction dropped, what each method keeps, and how far from the base it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_compress.reporting.results_table import Estimate, Kind, ResultsTable
from moe_compress.reporting.style import PALETTE, styled

_WIDTH = 11.0
_MARKS: tuple[tuple[Kind, float, str], ...] = (("own", -0.16, "candidate"), ("mixed", 0.16, "merged"))


Mark = Callable[[Axes, str, Kind, float, float, str], None]
"""Draws one row's value of one kind of plan at a fraction: axes, row, kind, fraction, height, colour."""


def kept_figure(table: ResultsTable) -> Figure:
    """Draw per fraction every row's mean share kept with its interval, for own and for mixed plans."""

    def mark(axes: Axes, row: str, kind: Kind, fraction: float, height: float, colour: str) -> None:
        ours = Estimate.of(table.mean_kept(row, kind, fraction))
        axes.plot([100 * ours.low, 100 * ours.high], [height] * 2, color=colour, linewidth=1.4)
        axes.plot(100 * ours.value, height, "o", color=colour, markersize=3.5)

    figure = _draw(table, mark, "share of accuracy above chance kept, %, with 95 % interval")
    for axes in figure.axes:
        axes.axvline(100, color=PALETTE["line"], linewidth=0.8, zorder=0)
    return figure


def divergence_figure(table: ResultsTable) -> Figure:
    """Draw per fraction every row's mean KL to the base, on a logarithmic axis."""

    def mark(axes: Axes, row: str, kind: Kind, fraction: float, height: float, colour: str) -> None:
        axes.plot(table.mean_kl(row, kind, fraction), height, "o", color=colour, markersize=3.5)

    figure = _draw(table, mark, "KL to the base, nats per token")
    for axes in figure.axes:
        axes.set_xscale("log")
    return figure


def ranked_rows(table: ResultsTable) -> list[str]:
    """Return all rows, best mean share kept over all fractions first; own plans count where there are any."""
    shares: dict[str, list[float]] = {}
    for fraction in table.fractions:
        own = table.rows("own", fraction)
        for row in dict.fromkeys([*own, *table.rows("mixed", fraction)]):
            kind: Kind = "own" if row in own else "mixed"
            shares.setdefault(row, []).append(float(table.mean_kept(row, kind, fraction)[0]))
    return sorted(shares, key=lambda row: -float(np.mean(shares[row])))


def _draw(table: ResultsTable, mark: Mark, label: str) -> Figure:
    """Return a panel per fraction with every row's marks."""
    rows = ranked_rows(table)
    with styled():
        figure, panels = _panels(table, rows)
        for axes, fraction in zip(panels, table.fractions, strict=True):
            for kind, offset, colour in _MARKS:
                there = table.rows(kind, fraction)
                for place, row in enumerate(rows):
                    if row in there:
                        mark(axes, row, kind, fraction, place + offset, PALETTE[colour])
        panels[0].set_xlabel(label, loc="left")
        _legend(figure)
    return figure


def _panels(table: ResultsTable, rows: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(_WIDTH, 1.3 + 0.24 * len(rows)))
    panels = figure.subplots(1, len(table.fractions), sharey=True, squeeze=False)[0]
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for axes, fraction in zip(panels, table.fractions, strict=True):
        axes.set_title(f"{100 * fraction:g} % dropped")
        axes.grid(axis="y", color=PALETTE["line"], linewidth=0.4)
    return figure, list(panels)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    words = {"own": "plan made for the domain", "mixed": "one plan for all domains"}
    handles = [Line2D([], [], marker="o", color=PALETTE[colour], label=words[kind]) for kind, _, colour in _MARKS]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
