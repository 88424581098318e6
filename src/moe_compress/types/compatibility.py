"""What serving engines are expected to do with a compressed checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_compress.types.layout import MoELayout

Effect = Literal["slower", "condition", "misreads", "refuses"]
Verdict = Literal["loads", "loads with conditions", "not known", "misreads", "no"]


@dataclass(frozen=True)
class Served:
    """What of a compressed checkpoint decides how an engine takes it.

    Attributes:
        architecture: the model class `config.json` names.
        model_type: the family.
        layout: its experts and groups.
        quantisation: the quantisation's name, None for plain weights.
        dtype: the safetensors dtype that most weight bytes have.
    """

    architecture: str
    model_type: str
    layout: MoELayout
    quantisation: str | None
    dtype: str


@dataclass(frozen=True)
class Reason:
    """One thing an engine does with this checkpoint, and where that was read."""

    effect: Effect
    text: str
    source: str


@dataclass(frozen=True)
class EngineVerdict:
    """Whether an engine is expected to load a checkpoint, and why."""

    engine: str
    verdict: Verdict
    was_run: bool
    reasons: tuple[Reason, ...] = ()

    @property
    def is_warning(self) -> bool:
        """Whether serving it there would fail or give other answers."""
        return self.verdict in ("misreads", "no")
