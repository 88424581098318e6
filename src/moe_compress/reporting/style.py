"""How every figure looks: its colours, which a page swaps for its own, its widths and its type."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl

PALETTE = {
    "ink": "#1c2126",
    "muted": "#5c6670",
    "line": "#d8dde2",
    "paper": "#fefefe",
    "baseline": "#98a2ac",
    "candidate": "#0a6ebd",
    "merged": "#c4650c",
    "bad": "#b23c0e",
}
"""Name -> colour; each is used once, so that a page can swap it for its own variable of that name."""

WIDE, NARROW = 9.6, 3.75

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": PALETTE["ink"],
    "text.parse_math": False,
    "axes.edgecolor": PALETTE["line"],
    "axes.facecolor": "none",
    "axes.labelcolor": PALETTE["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.05,
    "figure.constrained_layout.hspace": 0.05,
    "figure.facecolor": PALETTE["paper"],
    "legend.frameon": False,
    "xtick.color": PALETTE["line"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["ink"],
    "ytick.major.size": 0,
    "svg.fonttype": "none",
}


def styled() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn alike."""
    return mpl.rc_context(STYLE)
