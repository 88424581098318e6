"""The verdict of validation gates over measured values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GateOutcome:
    """One gate's verdict: what was measured, what was asked, and whether failing it blocks a release."""

    name: str
    observed: float | None
    direction: Literal["at_least", "at_most"]
    limit: float
    severity: Literal["critical", "warning"]
    passed: bool
    description: str


@dataclass(frozen=True)
class GateReport:
    """Every gate's outcome, in the order they were asked."""

    domain: str
    outcomes: tuple[GateOutcome, ...]

    @property
    def failures(self) -> tuple[GateOutcome, ...]:
        """The outcomes that block a release."""
        return tuple(o for o in self.outcomes if not o.passed and o.severity == "critical")

    @property
    def passed(self) -> bool:
        """Whether nothing blocks a release; a report without gates proves nothing and does not pass."""
        return bool(self.outcomes) and not self.failures
