"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from moe_compress.atomic import write_atomically
from moe_compress.reporting import style, usage, wording
from moe_compress.reporting.content import CompressionReport, Drawing
from moe_compress.reporting.figures import illustrate
from moe_compress.reporting.figures.drawing import Illustration, as_svg
from moe_compress.reporting.sweep import describe_check, describe_fate
from moe_compress.reporting.templating import fill_template, style_sheet
from moe_compress.reporting.writing import compare_writing, new_loops

_MAX_FLIPS = 12
_MAX_LOOPS = 3


def write_html(report: CompressionReport, path: Path, drawings: Mapping[str, Drawing] | None = None) -> Path:
    """Write the page, whole or not at all; opening it loads nothing from anywhere.

    Args:
        report: the results.
        path: the file.
        drawings: what `draw` returned of the same results' figures; drawn now if not given.

    Returns:
        The file written.
    """
    html = fill_template(
        "report.html.j2",
        report=report,
        css=style_sheet(),
        drawings=draw(illustrate(report)) if drawings is None else drawings,
        parameters=wording.flatten(report.parameters),
        flips=report.flips[:_MAX_FLIPS],
        writing=compare_writing(report.baseline, report.candidate),
        loops=new_loops(report.baseline, report.candidate)[:_MAX_LOOPS],
        reproduce=usage.how_to_reproduce(report),
        snippets=usage.how_to_load(report, report.checkpoint or "path/to/checkpoint"),
        loading_note=usage.loading_note(report),
        facts=_list_facts(report),
        sweep_check=describe_check(report.sweep) if report.sweep else "",
        sweep_fate=describe_fate,
    )
    path = Path(path)
    write_atomically(path, html.encode())
    return path


def draw(figures: Iterable[Illustration]) -> dict[str, Drawing]:
    """Return name -> drawing of a report's figures; they take most of a page's time."""
    return {
        each.name: Drawing(
            # matplotlib escapes the text it writes into SVG.
            Markup(as_svg(each.wide, f"{each.name}-wide")),
            Markup(as_svg(each.draw(style.NARROW), f"{each.name}-narrow")),
            each.alt,
            each.shows,
            each.means,
        )
        for each in figures
    }


def _list_facts(report: CompressionReport) -> dict[str, Any]:
    """Return where everything came from, by the name people call it."""
    facts = {
        "plan digest": report.plan.digest,
        "checkpoint": report.checkpoint,
        "data docs": report.data_docs,
    }
    named = {key.replace("_", " "): value for key, value in report.provenance.items()}
    return named | {name: value for name, value in facts.items() if value}
