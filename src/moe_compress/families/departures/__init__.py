"""One small file for each family that departs from what can be derived: `departures/minimax.py` is `minimax`'s.

Such a file has `DEPARTURE`, which says what is different and nothing else. A family without a file is derived.
A family of text inside another has its own: `gemma4_text`, not `gemma4`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from moe_compress.plugins import list_plugins, load_plugin

__all__ = ["Departure", "find_departure"]


@dataclass(frozen=True)
class Departure:
    """How a family differs from the common shape.

    Attributes:
        refused: why its checkpoints cannot be compressed, as the end of a sentence; None when they can.
        top_k: the only number of experts per token its router can pick; None when the config decides.
        has_rows_after_experts: whether the router knows more than the routed experts and keeps it behind them, as
            rows that stay: shared experts, or one that skips the layer.
        count_aliases: names of the number of experts that other engines read and transformers does not save.
    """

    refused: str | None = None
    top_k: int | None = None
    has_rows_after_experts: bool = False
    count_aliases: tuple[str, ...] = ()


def find_departure(model_type: str) -> Departure:
    """Return how a family departs from the common shape, an empty departure when it does not."""
    package = sys.modules[__name__]
    name = model_type.replace("-", "_")
    if name not in list_plugins(package):
        return Departure()
    departure: Departure = load_plugin(package, name).DEPARTURE
    return departure
