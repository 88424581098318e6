"""Write what was measured of a reference model: the results page, its figures and the two cards."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

_COLOUR_MAP = "Blues"
_LINE = "#0a6ebd"
_INK = "#1c2126"
_SMOOTHED_OVER = 40


def render(template: str, **values: Any) -> str:
    """Fill one of this package's templates.

    Args:
        template: File name without its ending `.md.j2`.
        values: What the template asks for; one that is missing raises `jinja2.UndefinedError`.
    """
    environment = Environment(
        loader=PackageLoader("moe_compress.reference"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return environment.get_template(f"{template}.md.j2").render(**values)


def draw_training(losses: Sequence[float]) -> str:
    """Draw the training loss, smoothed over a few steps, as SVG."""
    width = min(_SMOOTHED_OVER, len(losses))
    smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(len(smooth)) + width, smooth, color=_LINE, linewidth=1.4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return _as_svg(figure)


def draw_routing(routing: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw each domain's share of gate weight per expert, one strip of squares per layer, as SVG.

    Args:
        routing: Domain to `[L, E]` shares, each row of which sums to one.
    """
    shares_DLE = np.array(list(routing.values()))
    num_domains, num_layers, num_experts = shares_DLE.shape
    figure = Figure(figsize=(10, 0.3 * num_domains * num_layers + 1.4), layout="constrained")
    panels = figure.subplots(num_layers, 1, squeeze=False)[:, 0]
    for layer, axes in enumerate(panels):
        shares_DE = shares_DLE[:, layer]
        # Experts are put beside those that serve the same domain, or the picture would look like noise.
        order = np.lexsort((-shares_DE.max(axis=0), shares_DE.argmax(axis=0)))
        image = axes.imshow(shares_DE[:, order], cmap=_COLOUR_MAP, aspect="auto", vmin=0, vmax=4 / num_experts)
        axes.set_yticks(range(num_domains), list(routing))
        axes.set_xticks([])
        axes.set_title(f"MoE layer {layer}", loc="left", fontsize=9, color=_INK)
    panels[-1].set_xlabel("experts, sorted in each layer by the domain they serve most")
    bar = figure.colorbar(image, ax=list(panels), shrink=0.6, extend="max")
    bar.set_label("share of the domain's gate weight")
    return _as_svg(figure)


def _as_svg(figure: Figure) -> str:
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "reference", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
