"""What a figure file hands over, how a figure becomes SVG or PNG, and what several of them draw alike."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from moe_compress.reporting.style import PALETTE, STYLE, WIDE
from moe_compress.types import FloatArray

_DPI = {"png": 160, "svg": 100}
"""Of what is drawn as pixels; an SVG has few such parts, and is part of a page that must stay small."""
_MAX_NAME = 18
_MAX_COLOURS = 256
_EMBEDDED = re.compile(r"data:image/png;base64,([\w+/=\s]+)")
_MAX_NAMED_LAYERS = 32


@dataclass(frozen=True)
class Illustration:
    """One figure of a report, with what a reader needs to understand it.

    Attributes:
        name: what a template calls it, and its file is called.
        draw: width in inches -> the figure, laid out for that width.
        alt: what it shows, for who cannot see it.
        shows: what is drawn, in a sentence.
        means: what that says of this run, in a sentence; empty where it says nothing by itself.
    """

    name: str
    draw: Callable[[float], Figure]
    alt: str
    shows: str
    means: str = ""

    @cached_property
    def wide(self) -> Figure:
        """The figure for a wide screen, laid out once for all that it is saved as."""
        return self.draw(WIDE)


def as_svg(figure: Figure, name: str) -> str:
    """Return a figure as an `<svg>` element for a page that defines the palette as CSS variables.

    Args:
        figure: what to draw.
        name: unique on the page; ids inside the element are derived from it.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        svg = _encode(figure, "svg").decode()
    svg = svg[svg.index("<svg") :].replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "")
    # Axes and groups carry plain ids such as `axes_1`, which two figures on one page would share.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for colour, code in PALETTE.items():
        svg = svg.replace(code, f"var(--{colour})")
    return _EMBEDDED.sub(_shrink, svg)


def _shrink(found: re.Match[str]) -> str:
    """Return an embedded image with a palette where it has few colours, as pictures of cells do; same pixels."""
    image = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA")
    pixels = np.asarray(image).view(np.uint32)[..., 0]
    colours, index = np.unique(pixels, return_inverse=True)
    if len(colours) > _MAX_COLOURS:
        return found[0]
    small = Image.fromarray(index.reshape(pixels.shape).astype(np.uint8))
    small.putpalette(colours.view(np.uint8).tobytes(), "RGBA")
    buffer = io.BytesIO()
    small.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def as_png(figure: Figure) -> bytes:
    """Return a figure as PNG, on the light palette's paper."""
    return _encode(figure, "png")


def _encode(figure: Figure, kind: str) -> bytes:
    _settle(figure)
    buffer = io.BytesIO()
    unstamped = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=_DPI[kind], transparent=kind == "svg", metadata=unstamped)
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lay a figure out for good; with its layout still to come, matplotlib draws it twice to save it."""
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
        with mpl.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
            figure.set_layout_engine(None)


def short(name: str) -> str:
    """Return a name that leaves room for the figure; the page's tables have it in full."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def ramp(colour: str, faintest: float = 0.0) -> LinearSegmentedColormap:
    """Return a map from clear to opaque: over white paper it darkens, over dark paper it lights up."""
    rgb = to_rgb(PALETTE[colour])
    return LinearSegmentedColormap.from_list(colour, [(*rgb, faintest), (*rgb, 1.0)])


def unit(scores_E: FloatArray) -> FloatArray:
    """Return scores between their lowest (0) and highest (1)."""
    spread = float(np.ptp(scores_E))
    return np.full(scores_E.shape, 0.8) if spread == 0 else (scores_E - scores_E.min()) / spread


def row_height(num_layers: int) -> float:
    """Return the height of a layer's row in inches."""
    return 0.30 if num_layers <= 12 else 0.19 if num_layers <= _MAX_NAMED_LAYERS else 0.125


def name_layers(axes: Axes, layers: tuple[int, ...], kept: tuple[int, ...] | None = None) -> None:
    """Name the rows of a picture, with how many experts each keeps where that is given."""
    places = range(0, len(layers), 1 if len(layers) <= _MAX_NAMED_LAYERS else 4)
    names = [f"layer {layers[place]}" for place in places]
    if kept:
        names = [f"{name}: {kept[place]}" for place, name in zip(places, names, strict=True)]
    axes.set_yticks(places, names)


def draw_cell_gaps(axes: Axes, rows: int, columns: int) -> None:
    """Draw lines of paper between the cells of an image."""
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PALETTE["paper"], linewidth=1.2)
    axes.tick_params(which="minor", length=0)
