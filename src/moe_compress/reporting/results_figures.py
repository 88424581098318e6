"""The figures of the results page: by fraction dropped, what each method keeps, and how far from the base it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_compress.reporting.results_table import Estimate, Kind, ResultsTable
from moe_compress.reporting.style import PALETTE, styled

_WIDTH = 11.0
_MARKS: tuple[tuple[Kind, float, str], ...] = (("own", -0.16, "candidate"), ("mixed", 0.16, "merged"))


def kept_figure(table: ResultsTable) -> Figure:
    """Draw per fraction every row's mean share kept with its interval, for own and for mixed plans."""
    rows = ranked_rows(table)
    with styled():
        figure, panels = _panels(table, rows)
        for axes, fraction in zip(panels, table.fractions, strict=True):
            for kind, offset, colour in _MARKS:
                for place, row in enumerate(rows):
                    if row in table.rows(kind, fraction):
                        ours = Estimate.of(table.mean_kept(row, kind, fraction))
                        ends = [100 * ours.low, 100 * ours.high]
                        axes.plot(ends, [place + offset] * 2, color=PALETTE[colour], linewidth=1.4)
                        axes.plot(100 * ours.value, place + offset, "o", color=PALETTE[colour], markersize=3.5)
            axes.axvline(100, color=PALETTE["line"], linewidth=0.8, zorder=0)
        panels[0].set_xlabel("share of accuracy above chance kept, %, with 95 % interval", loc="left")
        _legend(figure)
    return figure


def divergence_figure(table: ResultsTable) -> Figure:
    """Draw per fraction every row's mean KL to the base, on a logarithmic axis."""
    rows = ranked_rows(table)
    with styled():
        figure, panels = _panels(table, rows)
        for axes, fraction in zip(panels, table.fractions, strict=True):
            for kind, offset, colour in _MARKS:
                for place, row in enumerate(rows):
                    if row in table.rows(kind, fraction):
                        found = table.mean_kl(row, kind, fraction)
                        axes.plot(found, place + offset, "o", color=PALETTE[colour], markersize=3.5)
            axes.set_xscale("log")
        panels[0].set_xlabel("KL to the base, nats per token", loc="left")
        _legend(figure)
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
