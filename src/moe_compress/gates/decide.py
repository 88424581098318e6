"""Decide gates over measured values: plain comparisons, where what was not measured never passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, get_args

from moe_compress.errors import GateFailedError, ParameterError
from moe_compress.gates.limits import Limit, RelativeLimit, Resolved, measured_number, parse_limit, resolve
from moe_compress.types import GateOutcome, GateReport

Direction = Literal["at_least", "at_most"]
Severity = Literal["critical", "warning"]
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_SEVERITIES: tuple[Severity, ...] = get_args(Severity)
_BOUNDS = ("low", "high")
_KEYS = ("name", "metric", "bound", *_DIRECTIONS, "severity", "description")


@dataclass(frozen=True)
class GateSpec:
    """One gate: the metric it looks at and the limit asked of it.

    Attributes:
        name: the gate's name, once per report.
        metric: name of a measured value; `{domain}` in it stands for the domain that is gated.
        direction: whether the value must be at least or at most the limit; the limit itself passes.
        limit: in the metric's own unit, or relative to another model's value of the same metric.
        severity: `critical` blocks a release, `warning` is reported only.
        description: what passing means, for the reports.
    """

    name: str
    metric: str
    direction: Direction
    limit: Limit
    severity: Severity = "critical"
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.metric:
            raise ParameterError(
                f"a gate needs a name and a metric, got name={self.name!r} and metric={self.metric!r}; give both"
            )
        _check_choice(self.name, "direction", self.direction, _DIRECTIONS)
        _check_choice(self.name, "severity", self.severity, _SEVERITIES)

    @property
    def reference(self) -> str | None:
        """Which model the limit is relative to, None where it is a number."""
        return self.limit.of if isinstance(self.limit, RelativeLimit) else None

    def metric_of(self, domain: str) -> str:
        """Return the metric's name for one domain."""
        return self.metric.replace("{domain}", domain)


def _check_choice(gate: str, what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ParameterError(f"gate '{gate}' has the {what} {value!r}; use {' or '.join(choices)}")


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
    if "bound" in entry:
        _check_choice(name, "bound", entry["bound"], _BOUNDS)
    return GateSpec(
        name=name,
        metric=".".join(str(entry[key]) for key in ("metric", "bound") if entry.get(key)),
        direction=directions[0],
        limit=parse_limit(name, directions[0], entry[directions[0]]),
        severity=cast(Severity, entry.get("severity", "critical")),
        description=str(entry.get("description", "")),
    )


def _check_names(gates: Sequence[GateSpec]) -> None:
    names = [gate.name for gate in gates]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ParameterError(f"the gate '{repeated[0]}' is given {names.count(repeated[0])} times; name it once")


def decide(
    gates: Sequence[GateSpec],
    measured: Mapping[str, float | None],
    domain: str = "",
    *,
    baseline: Mapping[str, float] | None = None,
    champion: Mapping[str, float] | None = None,
    places: Mapping[str, str] | None = None,
) -> GateReport:
    """Return every gate's outcome over the measured values, in the order the gates are given.

    A value that is missing, None, NaN or infinite fails its gate with `observed=None`, and so does a relative limit
    whose reference was not measured. Only where there is no champion yet, a limit relative to it passes.

    Args:
        gates: the gates.
        measured: metric -> value.
        domain: the domain that is gated.
        baseline: metric -> the baseline's value.
        champion: metric -> the value of the registered champion; None where there is none.
        places: metric -> where its value was found.

    Raises:
        ParameterError: if two gates share a name.
    """
    _check_names(gates)
    outcomes = []
    for gate in gates:
        metric = gate.metric_of(domain)
        limit = resolve(gate.limit, metric, baseline or {}, champion)
        outcomes.append(_outcome(gate, metric, measured, limit, (places or {}).get(metric, "")))
    return GateReport(domain, tuple(outcomes))


def _outcome(
    gate: GateSpec, metric: str, measured: Mapping[str, float | None], limit: Resolved, place: str
) -> GateOutcome:
    observed = measured_number(measured.get(metric))
    return GateOutcome(
        name=gate.name,
        observed=observed,
        direction=gate.direction,
        limit=limit.value,
        severity=gate.severity,
        passed=observed is not None and (limit.waived or _allows(gate.direction, observed, limit.value)),
        description=gate.description if observed is not None else _why_not_measured(metric, measured),
        metric=metric,
        basis=limit.basis,
        place=place,
    )


def _allows(direction: Direction, value: float, limit: float | None) -> bool:
    if limit is None:
        return False
    return value >= limit if direction == "at_least" else value <= limit


def _why_not_measured(metric: str, measured: Mapping[str, float | None]) -> str:
    if metric in measured:
        why = ""
        if metric.startswith("share_kept."):
            better = "so little" if metric.endswith((".low", ".high")) else "no"
            why = f": the baseline answers {better} better than guessing"
        return f"'{metric}' was measured as {measured[metric]!r}, which is no finite number{why}"
    close = get_close_matches(metric, measured, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    kinds = sorted({name.partition(".")[0] for name in measured})
    return f"'{metric}' was not measured{hint}; measured: {', '.join(kinds) or 'nothing'}"


def require(
    report: GateReport, place: str | Path, subject: str = "candidate", consequence: str = "is not released"
) -> None:
    """Do nothing if the report passes.

    Args:
        report: the decided gates.
        place: where the full report stands, for the message.
        subject: what was gated.
        consequence: what does not happen to it.

    Raises:
        GateFailedError: naming each failed critical gate, its value, its place and its limit.
    """
    if report.passed:
        return
    named = f"the {subject} for '{report.domain}'"
    if not report.outcomes:
        raise GateFailedError(f"{named} was put to no gate, which proves nothing; list gates in the parameters")
    failed = "; ".join(describe_failure(outcome) for outcome in report.failures)
    raise GateFailedError(
        f"{named} failed {len(report.failures)} of {len(report.outcomes)} gates and {consequence}: "
        f"{failed}; see {place}"
    )


def describe_failure(outcome: GateOutcome) -> str:
    """Return a failed outcome in words, such as `size is 0.81, must be at most 0.7`."""
    basis = f" ({outcome.basis})" if outcome.basis else ""
    observed, limit = _tell_apart(outcome)
    asked = f"must be {outcome.direction.replace('_', ' ')} {limit}{basis}"
    if outcome.observed is None:
        return f"{outcome.name} has no value ({outcome.description}), {asked}"
    place = f" ({outcome.place})" if outcome.place else ""
    return f"{outcome.name} is {observed}{place}, {asked}"


def _tell_apart(outcome: GateOutcome) -> tuple[str, str]:
    """Return value and limit in four digits, or in as many more as show that the value is past the limit."""
    value, limit = outcome.observed or 0.0, outcome.limit
    if limit is None:
        return f"{value:.4g}", "a limit that is not known"
    before_point = len(f"{abs(value):.0f}")
    for digits in range(max(4, before_point), before_point + 17):
        told, asked = f"{value:.{digits}g}", f"{limit:.{max(6, digits)}g}"
        if not _allows(outcome.direction, float(told), float(asked)):
            break
    return told, asked
