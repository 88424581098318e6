"""Two registered versions side by side, as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_compress.atomic import write_atomically
from moe_compress.reporting.templating import fill_template, style_sheet


def write_comparison(compared: Mapping[str, Any], path: Path) -> Path:
    """Write the page, whole or not at all; opening it loads nothing from anywhere.

    Args:
        compared: two versions as the JSON of `kedro compress diff` has them.
        path: the file to write.

    Returns:
        The file written.
    """
    names = [uri.removeprefix("models:/").replace("/", " version ") for uri in compared["versions"]]
    html = fill_template(
        "comparison.html.j2",
        css=style_sheet(),
        names=names,
        compared=compared,
        **_sort_measured(compared["measured"]),
    )
    write_atomically(path, html.encode())
    return path


def _sort_measured(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return table -> what belongs there; what names no other model is the compressed model's."""
    tables: dict[str, dict[str, Any]] = {"own": {}, "pruned": {}, "base": {}}
    for name, values in measured.items():
        tables[_OTHERS.get(name.partition(".")[0], "own")][name] = values
    return tables


_OTHERS = {"baseline": "base", "pruned": "pruned"}
"""First part of a metric's name -> the model that it is of, where that is not the compressed one."""
