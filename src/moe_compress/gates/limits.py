"""What a gate asks for: a number, or a share of what the baseline or the present champion reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

from moe_compress.errors import ParameterError

Reference = Literal["baseline", "champion"]
_REFERENCES: tuple[Reference, ...] = get_args(Reference)
_KEYS = ("of", "times", "plus")


@dataclass(frozen=True)
class RelativeLimit:
    """A limit that depends on what another model reaches in the same metric: `times * value + plus`.

    Attributes:
        of: `baseline`, the model before compression, or `champion`, the registered version in use.
        times: the factor.
        plus: what is added, in the metric's unit; negative for a tolerance below.
    """

    of: Reference
    times: float = 1.0
    plus: float = 0.0

    def describe(self, value: float) -> str:
        """Return what the limit was made of, such as `0.95 times the baseline's 0.81`."""
        factor = "" if self.times == 1 else f"{self.times:g} times "
        added = "" if self.plus == 0 else f" {'plus' if self.plus > 0 else 'minus'} {abs(self.plus):g}"
        return f"{factor}the {self.of}'s {value:.4g}{added}"


Limit = float | RelativeLimit


class Resolved(NamedTuple):
    """A limit as a number.

    Attributes:
        value: the number; None where there is none.
        basis: what it was made of, or why there is none; empty for a plain number.
        waived: whether there is none because there is no champion yet, which nothing can fall behind.
    """

    value: float | None
    basis: str = ""
    waived: bool = False


def measured_number(value: object) -> float | None:
    """Return a measured value as a float, or None for whatever is no finite number."""
    if not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def parse_limit(gate: str, direction: str, value: Any) -> Limit:
    """Return a limit from parameters: a number, or a block such as `{of: baseline, times: 0.95}`.

    Raises:
        ParameterError: if it is neither.
    """
    if not isinstance(value, Mapping):
        return _check_number(gate, direction, value)
    unknown = sorted(set(value) - set(_KEYS))
    if unknown or value.get("of") not in _REFERENCES:
        wrong = f"the unknown key '{unknown[0]}'" if unknown else f"of: {value.get('of')!r}"
        raise ParameterError(
            f"gate '{gate}' has {wrong} in {direction}; write of: {' or '.join(_REFERENCES)}, and times or plus"
        )
    numbers = {key: _check_number(gate, f"{direction}.{key}", value[key]) for key in _KEYS[1:] if key in value}
    return RelativeLimit(value["of"], **numbers)


def _check_number(gate: str, place: str, value: Any) -> float:
    number = None if isinstance(value, bool) else measured_number(value)
    if number is None:
        raise ParameterError(f"gate '{gate}' has the limit {value!r}, which is no finite number; set {place}")
    return number


def resolve(
    limit: Limit, metric: str, baseline: Mapping[str, float], champion: Mapping[str, float] | None
) -> Resolved:
    """Return a limit as a number.

    Args:
        limit: as parsed.
        metric: what the gate looks at.
        baseline: metric -> the baseline's value.
        champion: metric -> the champion's value; None where there is no champion.
    """
    if not isinstance(limit, RelativeLimit):
        return Resolved(limit)
    if limit.of == "champion" and champion is None:
        return Resolved(None, "there is no champion yet", waived=True)
    value = measured_number((baseline if limit.of == "baseline" else champion or {}).get(metric))
    if value is None:
        return Resolved(None, f"no measured '{metric}' of the {limit.of} to compare with")
    return Resolved(limit.times * value + limit.plus, limit.describe(value))
