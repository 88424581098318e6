"""One small file for each family that departs from what can be derived: `departures/minimax.py` is `minimax`'s.

Such a file has `DEPARTURE`, which says what is different and nothing else. A family without a file is derived.
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
    """

    refused: str | None = None


def find_departure(model_type: str) -> Departure:
    """Return how a family departs from the common shape, an empty departure when it does not."""
    package = sys.modules[__name__]
    name = model_type.replace("-", "_")
    if name not in list_plugins(package):
        return Departure()
    departure: Departure = load_plugin(package, name).DEPARTURE
    return departure
