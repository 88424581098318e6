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
    measured = {name: values for name, values in compared["measured"].items() if name.startswith(_OWN)}
    names = [uri.removeprefix("models:/").replace("/", " version ") for uri in compared["versions"]]
    html = fill_template(
        "comparison.html.j2",
        css=style_sheet(),
        names=names,
        compared=compared,
        own=measured,
        base={name: values for name, values in compared["measured"].items() if name not in measured},
    )
    write_atomically(path, html.encode())
    return path


_OWN = ("candidate.", "share_kept.")
"""What was measured of the compressed model; all else is its base model's."""
