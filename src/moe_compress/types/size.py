"""What a model weighs, expert by expert: from it a budget of bytes or parameters becomes one of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SizeUnit = Literal["bytes", "parameters"]


@dataclass(frozen=True)
class ModelSize:
    """What a model's experts and the rest of it weigh.

    Attributes:
        experts: per layer with experts, one expert's size, its router row included; length L.
        rest: the size of everything else.
        unit: `bytes` or `parameters`, for messages.
    """

    experts: tuple[int, ...]
    rest: int
    unit: SizeUnit = "bytes"
