"""Numbers and findings as people read them, the same in the terminal, on the page and on the card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from moe_compress.types import Agreement, GateOutcome, TaskComparison, Throughput, noise_of

MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_GAP = "\N{NO-BREAK SPACE}"
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_COUNT_UNITS = ("", f"{_GAP}k", f"{_GAP}M", f"{_GAP}B", f"{_GAP}T")


def number(value: float | None, digits: int = 4) -> str:
    """Return a plain number with that many significant digits and a real minus sign."""
    if value is None or math.isnan(value):
        return MISSING
    # Half below a power of ten rounds up to it, which `g` would write with an exponent.
    is_whole = math.isfinite(value) and abs(value) >= 10**digits - 0.5
    text = f"{value:,.0f}" if is_whole else f"{value:.{digits}g}"
    return text.replace("-", _MINUS)


def percent(share: float | None) -> str:
    """Return a share (1 is all) as a percentage with one decimal."""
    if share is None or math.isnan(share):
        return MISSING
    return f"{100 * share:.1f}{_GAP}%".replace("-", _MINUS)


def points(difference: float) -> str:
    """Return a difference of two shares in percentage points, signed, with one decimal."""
    text = f"{100 * difference:+.1f}".replace("-", _MINUS)
    return "0.0" if text[1:] == "0.0" else text


def points_interval(low: float, high: float) -> str:
    """Return an interval of differences in percentage points."""
    return f"{points(low)} to {points(high)}"


def difference_interval(comparison: TaskComparison) -> str:
    """Return a difference's interval in points or, where no item was lost or gained, how many at most would be.

    Resampling items of which none changed gives 0 every time, however few they are. But a share of changing items
    above `1 - 0.05^(1/n)`, about `3/n`, would have shown one among n with 95 % certainty.
    """
    if comparison.lost or comparison.gained:
        return points_interval(comparison.difference_low, comparison.difference_high)
    most = 1 - 0.05 ** (1 / comparison.num_items)
    return f"none of {comparison.num_items} changed, at most {percent(most)} do"


def percent_interval(low: float, high: float) -> str:
    """Return an interval of shares, in percent; a dash where it has no bounds."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return f"{100 * low:.1f} to {100 * high:.1f}{_GAP}%".replace("-", _MINUS)


def change(before: float | None, after: float | None) -> str:
    """Return the relative change in percent, signed, or a dash where there is none to give."""
    if not before or after is None or math.isnan(after / before):
        return MISSING
    return f"{100 * (after / before - 1):+.1f}{_GAP}%".replace("-", _MINUS)


def speed_change(speeds: Sequence[Throughput], kind: Literal["prefill", "decode"], size: int) -> str:
    """Return the relative change of a speed or, where equal models could have differed as much, that noise."""
    before, after = (getattr(each, kind)[size].tokens_per_second for each in speeds)
    noise = noise_of(speeds, kind, size)
    is_clear = max(after / before, before / after) > 1 + noise
    return change(before, after) if is_clear else f"within noise of {100 * noise:.0f}{_GAP}%"


def difference(before: float | None, after: float | None) -> str:
    """Return how much more the second is, signed, or a dash where one is missing."""
    if before is None or after is None or math.isnan(after - before):
        return MISSING
    if after == before:
        return "0"
    more = after - before
    return f"{more:+{',.0f' if abs(more) >= 999.5 else '.3g'}}".replace("-", _MINUS)


def p_value(value: float) -> str:
    """Return a p-value, cut below at 0.001."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def size(num_bytes: float) -> str:
    """Return bytes in the decimal unit that reads best."""
    return _scaled(num_bytes, _BYTE_UNITS, _GAP)


def count(value: float) -> str:
    """Return a large count with three digits and k, M, B or T."""
    if math.isnan(value):
        return MISSING
    return _scaled(value, _COUNT_UNITS, "")


def _scaled(value: float, units: Sequence[str], gap: str) -> str:
    power = 0
    # 999.5 would be rounded to 1000 of its unit, so it already belongs to the next.
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{gap}{units[power]}"


def plural(value: int, noun: str) -> str:
    """Return `1 gate`, `2 gates`."""
    return f"{value} {noun}{'' if value == 1 else 's'}"


def brief(value: object) -> str:
    """Return a value as text, of a digest only so much as tells it from others."""
    text = MISSING if value is None else str(value)
    is_digest = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:12] if is_digest else text


def span(values: Sequence[int]) -> str:
    """Return one number where all are equal, else the smallest and the largest."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def limit(outcome: GateOutcome) -> str:
    """Return what a gate asks, such as `at least 0.95`."""
    return f"{outcome.direction.replace('_', ' ')} {number(outcome.limit)}"


def observed(outcome: GateOutcome) -> str:
    """Return what a gate saw."""
    return "not measured" if outcome.observed is None else number(outcome.observed)


def verdict(outcome: GateOutcome) -> str:
    """Return one word for a gate's outcome: only a critical failure blocks."""
    return "passed" if outcome.passed else "failed" if outcome.severity == "critical" else "warning"


def reason(outcome: GateOutcome) -> str:
    """Return why a gate was not passed: its value and where that was found, its limit and what that is made of."""
    place, basis = (f" ({text})" if text else "" for text in (outcome.place, outcome.basis))
    return f"{outcome.name}: observed {observed(outcome)}{place}, limit {limit(outcome)}{basis}"


def accuracy_sentence(comparison: TaskComparison) -> str:
    """Return what became of one task's accuracy, in a sentence."""
    share = percent(comparison.share_kept)
    kept = "" if math.isnan(comparison.share_kept) else f", keeping {share} of what is above chance"
    return (
        f"Accuracy on {comparison.task} went from {percent(comparison.baseline_accuracy)} to "
        f"{percent(comparison.candidate_accuracy)} ({points(comparison.difference)} points, "
        f"95{_GAP}% interval: {difference_interval(comparison)}){kept}."
    )


def agreement_sentence(agreement: Agreement) -> str:
    """Return whether there were enough demonstrations, in a sentence.

    What counts is how much of the way from chance to full agreement the halves have come.
    """
    room = 1 - agreement.chance
    reached = (agreement.mean_shared - agreement.chance) / room if room > 0 else 1.0
    effect = "little" if reached >= 0.85 else "a few of them" if reached >= 0.6 else "much"
    return (
        f"Two random halves of the {agreement.num_demonstrations} demonstrations, each on its own, agree on "
        f"{percent(agreement.mean_shared)} of the experts to keep ({percent(agreement.chance)} by chance): more "
        f"demonstrations would change {effect}."
    )


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested parameters as dotted keys and plain text."""
    flat: dict[str, str] = {}
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: _plain(value)}
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None or value == {} else str(value)
