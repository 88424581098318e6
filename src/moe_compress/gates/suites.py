"""Say what is expected of measured values and of demonstrations, as data that needs no library to build."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe_compress.gates.decide import Severity
from moe_compress.gates.demonstrations import (
    COLUMNS,
    DemonstrationLimits,
    DemonstrationSet,
    normalised,
    text_of,
)
from moe_compress.types import GateOutcome, GateReport


@dataclass(frozen=True)
class Expected:
    """One expectation of a column or a table.

    Attributes:
        kind: the name of its class in Great Expectations.
        name: the gate's name, or the check's.
        description: what is expected, for the pages.
        arguments: the arguments of the class.
        severity: `critical` or `warning`.
    """

    kind: str
    name: str
    description: str
    arguments: Mapping[str, object]
    severity: Severity = "critical"


def expected_of_gate(outcome: GateOutcome) -> Iterator[Expected]:
    """Yield that the value was measured, and that it keeps to the limit.

    Two expectations, because the library's comparison lets a missing value pass. A limit without a number is null
    in a column of its own; where a gate passes nevertheless, nothing is asked of it.
    """
    name, metric = outcome.name, outcome.metric
    yield Expected(
        "ExpectColumnValuesToNotBeNull",
        name,
        f"{name}: {metric} was measured",
        {"column": metric},
        outcome.severity,
    )
    if outcome.limit is None:
        if not outcome.passed:
            yield Expected(
                "ExpectColumnValuesToNotBeNull",
                name,
                f"{name}: its limit is known, but {outcome.basis}",
                {"column": limit_column(outcome)},
                outcome.severity,
            )
        return
    bound = "min_value" if outcome.direction == "at_least" else "max_value"
    asked = f"{name}: {metric} {outcome.direction.replace('_', ' ')} {outcome.limit:g}"
    said = "; ".join(text for text in (outcome.basis, outcome.description, outcome.place) if text)
    yield Expected(
        "ExpectColumnValuesToBeBetween",
        name,
        f"{asked} ({said})" if said else asked,
        {"column": metric, bound: outcome.limit},
        outcome.severity,
    )


def limit_column(outcome: GateOutcome) -> str:
    """Return the column of a gate's limit that has no number."""
    return f"limit of {outcome.name}"


def columns_of_gates(report: GateReport) -> dict[str, list[float]]:
    """Return each gate's observed value as a column of one row, and unknown limits; NaN for no number."""
    columns = {
        outcome.metric: [math.nan if outcome.observed is None else outcome.observed] for outcome in report.outcomes
    }
    return columns | {limit_column(outcome): [math.nan] for outcome in report.outcomes if outcome.limit is None}


def columns_of_demonstrations(demonstrations: DemonstrationSet) -> dict[str, list[Any]]:
    """Return one row per demonstration with blank texts as nulls, and the columns the checks derive."""
    rows = demonstrations.rows
    columns = {column: [text_of(row, column) or None for row in rows] for column in COLUMNS}
    # A column no row has is left out, so that its absence itself is found.
    present = {column for column in COLUMNS if any(column in row for row in rows)}
    return {name: values for name, values in columns.items() if name in present} | {
        "normalised_question": [normalised(text_of(row, "question")) or None for row in rows],
        "num_tokens": list(demonstrations.token_lengths),
        "in_benchmark": demonstrations.leaked(),
    }


def expected_of_demonstrations(limits: DemonstrationLimits) -> Iterator[Expected]:
    """Yield the checks of `demonstrations.py`, one expectation or two for each."""
    yield Expected(
        "ExpectTableRowCountToBeBetween",
        "enough_rows",
        f"at least {limits.min_rows} demonstrations",
        {"min_value": limits.min_rows},
    )
    for column in COLUMNS:
        yield Expected("ExpectColumnToExist", f"has_{column}", f"column '{column}' exists", {"column": column})
        yield Expected(
            "ExpectColumnValuesToNotBeNull",
            f"{column}_filled",
            f"no empty '{column}'",
            {"column": column},
        )
    yield Expected("ExpectColumnValuesToBeUnique", "unique_ids", "every id stands once", {"column": "id"})
    yield Expected(
        "ExpectColumnValuesToBeUnique",
        "unique_questions",
        "every question is asked once, case and spacing aside",
        {"column": "normalised_question"},
    )
    yield Expected(
        "ExpectColumnValuesToBeBetween",
        "token_lengths",
        f"{limits.min_tokens} to {limits.max_tokens} tokens in every text",
        {"column": "num_tokens", "min_value": limits.min_tokens, "max_value": limits.max_tokens},
    )
    yield Expected(
        "ExpectColumnValuesToBeInSet",
        "no_leakage",
        "no question is also a benchmark question",
        {"column": "in_benchmark", "value_set": [False]},
    )
