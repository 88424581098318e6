"""A sweep to look at: accuracy against size with intervals, and the same in lines for a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_compress.atomic import write_atomically
from moe_compress.reporting import wording
from moe_compress.reporting.style import PALETTE, WIDE, styled
from moe_compress.types import SweepEntry, SweepResult


def sweep_figure(result: SweepResult, width: float = WIDE) -> Figure:
    """Draw every plan's accuracy over its size, the best of each budget with its 95 % interval, and the choice."""
    best = [result.best_at(fraction) for fraction in result.fractions]
    with styled():
        figure = Figure(figsize=(width, 3.4))
        axes = figure.subplots()
        axes.axhline(100 * result.chance, color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
        others = [entry for entry in result.entries if entry not in best]
        axes.scatter(*_places(others), 14, PALETTE["baseline"], linewidths=0, zorder=2, label="other plans")
        axes.plot(*_places(best), color=PALETTE["candidate"], linewidth=1, zorder=2)
        for entry in best:
            _draw_interval(axes, 100 * entry.size_ratio, entry.interval, "candidate")
        axes.plot(*_places(best), "o", color=PALETTE["candidate"], markersize=6, label="best of its size, 95 %")
        _draw_interval(axes, 100, result.base_interval, "ink")
        axes.plot(100, 100 * result.base_accuracy, "o", color=PALETTE["ink"], markersize=6, label="base model")
        if result.choice is not None:
            _ring(axes, result.choice)
        axes.set(xlabel="weights on disk, % of the base model", title="accuracy, %")
        axes.set_ylim(min(100 * result.chance, *_places(list(result.entries))[1]) - 4, None)
        figure.legend(loc="outside upper right", ncols=2 if width < WIDE else 4, handlelength=1.2)
    return figure


def _places(entries: list[SweepEntry]) -> tuple[list[float], list[float]]:
    return [100 * entry.size_ratio for entry in entries], [100 * entry.accuracy for entry in entries]


def _draw_interval(axes: Axes, place: float, interval: tuple[float, float], colour: str) -> None:
    axes.vlines(place, 100 * interval[0], 100 * interval[1], color=PALETTE[colour], linewidth=2, zorder=3)


def _ring(axes: Axes, choice: SweepEntry) -> None:
    place = (100 * choice.size_ratio, 100 * choice.accuracy)
    is_small = place[0] < 70  # to its left there may be no room, and larger plans lie above it
    axes.plot(*place, "o", markersize=13, fillstyle="none", color=PALETTE["merged"], label="smallest that passes")
    axes.annotate(
        f"{choice.method}, {100 * choice.fraction_dropped:g} % dropped",
        place,
        (12, -26) if is_small else (-9, 9),
        textcoords="offset points",
        ha="left" if is_small else "right",
        bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "pad": 0.5},
    )


def save_figure(result: SweepResult, file: Path) -> None:
    """Write the figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    sweep_figure(result).savefig(buffer, format="png", dpi=160)
    write_atomically(file, buffer.getvalue())


def describe_fate(entry: SweepEntry) -> str:
    """Return what became of an entry: `passes`, the gates it fails, or for whom it was given up."""
    if entry.dropped_for is not None:
        return f"given up after {entry.num_items} items: {entry.dropped_for} is clearly better"
    return "; ".join(entry.failures) or "passes"


def describe_check(result: SweepResult) -> str:
    """Return whether masking agreed with rewriting on the choice, in a sentence."""
    if result.check is None:
        return "No plan passed, so none was written to check the masks."
    check = result.check
    same = check.num_items - check.num_different
    return (
        f"Written and loaded, the chosen plan answers {same} of {check.num_items} items as it did under the mask; "
        f"log-likelihoods differ by at most {check.largest:.2g}."
    )


def as_lines(result: SweepResult) -> list[str]:
    """Return the sweep as lines of text, smallest plans first."""
    base = f"{wording.percent(result.base_accuracy)} of {result.num_items}"
    lines = [f"sweep of {result.domain}: the base model answers {base} items rightly"]
    for entry in sorted(result.entries, key=lambda entry: (entry.size_ratio, -entry.accuracy)):
        mark = "*" if entry is result.choice else " "
        kl = f"{entry.measured[f'kl.{result.domain}']:.4f}" if f"kl.{result.domain}" in entry.measured else "-"
        lines.append(
            f"{mark} {entry.method:<24}{entry.fraction_dropped:>6.0%} dropped {entry.size_ratio:>6.0%} of the bytes"
            f"{entry.accuracy:>7.1%} ({entry.interval[0]:.1%} to {entry.interval[1]:.1%}) KL {kl:>7}  "
            f"{describe_fate(entry)}"
        )
    lines += [f"  not tried: {name}: {reason}" for name, reason in result.skipped.items()]
    return [*lines, describe_check(result)]
