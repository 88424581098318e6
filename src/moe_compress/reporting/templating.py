"""Fill the package's templates; whatever goes into HTML is escaped, and a missing value is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from moe_compress.reporting import wording

_FOLDER = Path(__file__).parent / "templates"


def fill_template(name: str, **values: Any) -> str:
    """Return one template filled in; the functions of `wording` are there as `say`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(say=wording, **values)


def style_sheet() -> Markup:
    """Return the pages' style sheet; it is our own file, and escaped its selectors would break."""
    return Markup((_FOLDER / "report.css").read_text(encoding="utf-8"))
