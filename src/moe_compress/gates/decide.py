"""Decide gates over measured values: plain comparisons, where what was not measured never passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any, Literal, cast, get_args

from moe_compress.errors import GateFailedError, ParameterError
from moe_compress.types import GateOutcome, GateReport

Direction = Literal["at_least", "at_most"]
Severity = Literal["critical", "warning"]
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_SEVERITIES: tuple[Severity, ...] = get_args(Severity)
_KEYS = ("name", "metric", *_DIRECTIONS, "severity", "description")


@dataclass(frozen=True)
class GateSpec:
    """One gate: the metric it looks at and the limit asked of it.

    Attributes:
        name: the gate's name, once per report.
        metric: name of a measured value; `{domain}` in it stands for the domain that is gated.
        direction: whether the value must be at least or at most the limit; the limit itself passes.
        limit: in the metric's own unit.
        severity: `critical` blocks a release, `warning` is reported only.
        description: what passing means, for the reports.
    """

    name: str
    metric: str
    direction: Direction
    limit: float
    severity: Severity = "critical"
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.metric:
            raise ParameterError(
                f"a gate needs a name and a metric, got name={self.name!r} and metric={self.metric!r}; give both"
            )
        _check_choice(self.name, "direction", self.direction, _DIRECTIONS)
        _check_choice(self.name, "severity", self.severity, _SEVERITIES)
        if isinstance(self.limit, bool) or measured_number(self.limit) is None:
            raise ParameterError(
                f"gate '{self.name}' has the limit {self.limit!r}, which is no finite number; set {self.direction}"
            )

    def metric_of(self, domain: str) -> str:
        """Return the metric's name for one domain."""
        return self.metric.replace("{domain}", domain)

    def allows(self, value: float) -> bool:
        """Return whether a measured value meets the limit."""
        return value >= self.limit if self.direction == "at_least" else value <= self.limit


def _check_choice(gate: str, what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ParameterError(f"gate '{gate}' has the {what} {value!r}; use {' or '.join(choices)}")


def measured_number(value: object) -> float | None:
    """Return a measured value as a float, or None for whatever is no finite number."""
    if not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def parse_gates(entries: Iterable[Mapping[str, Any]]) -> tuple[GateSpec, ...]:
    """Return gates from parameters such as `{name: size, metric: bytes_share, at_most: 0.7}`.

    Raises:
        ParameterError: if an entry has unknown keys, not exactly one limit, or repeats a name.
    """
    gates = tuple(_parse_gate(entry) for entry in entries)
    _check_names(gates)
    return gates


def _parse_gate(entry: Mapping[str, Any]) -> GateSpec:
    name = str(entry.get("name", ""))
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        close = get_close_matches(unknown[0], _KEYS, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ParameterError(f"gate '{name}' has the unknown key '{unknown[0]}'{hint}; use {', '.join(_KEYS)}")
    directions = [direction for direction in _DIRECTIONS if direction in entry]
    if len(directions) != 1:
        raise ParameterError(
            f"gate '{name}' gives {len(directions)} limits; give exactly one of {' or '.join(_DIRECTIONS)}"
        )
    return GateSpec(
        name=name,
        metric=str(entry.get("metric", "")),
        direction=directions[0],
        limit=entry[directions[0]],
        severity=cast(Severity, entry.get("severity", "critical")),
        description=str(entry.get("description", "")),
    )


def _check_names(gates: Sequence[GateSpec]) -> None:
    names = [gate.name for gate in gates]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ParameterError(f"the gate '{repeated[0]}' is given {names.count(repeated[0])} times; name it once")


def decide(gates: Sequence[GateSpec], measured: Mapping[str, float | None], domain: str = "") -> GateReport:
    """Return every gate's outcome over the measured values, in the order the gates are given.

    A value that is missing, None, NaN or infinite fails its gate with `observed=None`.

    Raises:
        ParameterError: if two gates share a name.
    """
    _check_names(gates)
    return GateReport(domain, tuple(_outcome(gate, gate.metric_of(domain), measured) for gate in gates))


def _outcome(gate: GateSpec, metric: str, measured: Mapping[str, float | None]) -> GateOutcome:
    observed = measured_number(measured.get(metric))
    return GateOutcome(
        name=gate.name,
        observed=observed,
        direction=gate.direction,
        limit=float(gate.limit),
        severity=gate.severity,
        passed=observed is not None and gate.allows(observed),
        description=gate.description if observed is not None else _why_not_measured(metric, measured),
    )


def _why_not_measured(metric: str, measured: Mapping[str, float | None]) -> str:
    if metric in measured:
        guesses = ": the baseline answers no better than guessing" if metric.startswith("share_kept.") else ""
        return f"'{metric}' was measured as {measured[metric]!r}, which is no finite number{guesses}"
    close = get_close_matches(metric, measured, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"'{metric}' was not measured{hint}; measured: {', '.join(sorted(measured)) or 'nothing'}"


def require(report: GateReport, place: str | Path) -> None:
    """Do nothing if the report passes.

    Args:
        report: the decided gates.
        place: where the full report stands, for the message.

    Raises:
        GateFailedError: naming each failed critical gate, its value and its limit.
    """
    if report.passed:
        return
    subject = f"the candidate for '{report.domain}'"
    if not report.outcomes:
        raise GateFailedError(f"{subject} was put to no gate, which proves nothing; list gates in the parameters")
    failed = "; ".join(describe_failure(outcome) for outcome in report.failures)
    raise GateFailedError(
        f"{subject} failed {len(report.failures)} of {len(report.outcomes)} gates and is not released: "
        f"{failed}; see {place}"
    )


def describe_failure(outcome: GateOutcome) -> str:
    """Return a failed outcome in words, such as `size is 0.81, must be at most 0.7`."""
    asked = f"must be {outcome.direction.replace('_', ' ')} {outcome.limit:g}"
    if outcome.observed is None:
        return f"{outcome.name} has no value ({outcome.description}), {asked}"
    # Nine digits, so that a value just past its limit does not print as the limit.
    return f"{outcome.name} is {outcome.observed:.9g}, {asked}"
