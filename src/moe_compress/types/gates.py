"""The verdict of validation gates over measured values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Measurements:
    """Every number a gate may ask about.

    Attributes:
        values: metric -> what was measured of the candidate, or of what is gated.
        baseline: metric -> the baseline's own value, where it has one under that name.
        places: metric -> where the value was found, such as `layer 3`.
    """

    values: Mapping[str, float]
    baseline: Mapping[str, float] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GateOutcome:
    """One gate's verdict: what was measured, what was asked, and whether failing it blocks a release.

    Attributes:
        name: the gate's name.
        observed: the measured value; None where there is none.
        direction: whether it must be at least or at most the limit.
        limit: in the metric's unit; None where what the limit is relative to has no value.
        severity: `critical` blocks, `warning` does not.
        passed: the verdict.
        description: what passing means, or why there is no value.
        metric: what was measured.
        basis: what a relative limit was made of, such as `0.95 times the baseline's 0.81`.
        place: where the value was found, such as `layer 3`.
    """

    name: str
    observed: float | None
    direction: Literal["at_least", "at_most"]
    limit: float | None
    severity: Literal["critical", "warning"]
    passed: bool
    description: str
    metric: str = ""
    basis: str = ""
    place: str = ""


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
