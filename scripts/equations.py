"""Draw the documentation's equations as MathML while it is built, so that no page loads a script to draw them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Return a page with every equation that `pymdownx.arithmatex` marked turned into MathML; mkdocs calls this."""
    return _EQUATION.sub(_draw, content)


def _draw(found: re.Match[str]) -> str:
    tag, latex = found.groups()
    display = "inline" if tag == "span" else "block"
    return f'<{tag} class="equation">{convert(html.unescape(latex), display=display)}</{tag}>'
