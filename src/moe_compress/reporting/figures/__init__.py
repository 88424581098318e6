"""The figures of a report, one idea a file; import this package only to draw, as it loads matplotlib.

A figure file has `illustrate(report)`, which yields an `Illustration` for each figure it has something for. One
more figure is one more file, its name below, and a place in `templates/sections`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moe_compress.atomic import write_atomically
from moe_compress.reporting.content import CompressionReport
from moe_compress.reporting.figures import (
    budgets,
    demonstrations,
    domains,
    kept,
    overlap,
    quality,
    scores,
    similarity,
    sweep,
    trees,
)
from moe_compress.reporting.figures.drawing import Illustration, as_png

_FILES = (quality, sweep, kept, scores, budgets, similarity, trees, demonstrations, domains, overlap)


def illustrate(report: CompressionReport) -> tuple[Illustration, ...]:
    """Return every figure this report has something for."""
    return tuple(figure for file in _FILES for figure in file.illustrate(report))


def save_figures(figures: Iterable[Illustration], folder: Path) -> list[Path]:
    """Write figures as PNG, each whole or not at all.

    Returns:
        The files written.
    """
    paths = {Path(folder) / f"{figure.name}.png": figure for figure in figures}
    for path, figure in paths.items():
        write_atomically(path, as_png(figure.wide))
    return list(paths)
