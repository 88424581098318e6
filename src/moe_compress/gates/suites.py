"""Say what is expected of measured values and of demonstrations, as data that needs no library to build."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_compress.gates.decide import GateSpec, Severity, measured_number
from moe_compress.gates.demonstrations import (
    COLUMNS,
    DemonstrationLimits,
    DemonstrationSet,
    normalised,
    text_of,
)


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


def expected_of_gate(gate: GateSpec, domain: str) -> Iterator[Expected]:
    """Yield two expectations, because the library's comparison lets a missing value pass."""
    metric = gate.metric_of(domain)
    bound = "min_value" if gate.direction == "at_least" else "max_value"
    asked = f"{gate.name}: {metric} {gate.direction.replace('_', ' ')} {gate.limit:g}"
    yield Expected(
        "ExpectColumnValuesToNotBeNull",
        gate.name,
        f"{gate.name}: {metric} was measured",
        {"column": metric},
        gate.severity,
    )
    yield Expected(
        "ExpectColumnValuesToBeBetween",
        gate.name,
        f"{asked} ({gate.description})" if gate.description else asked,
        {"column": metric, bound: float(gate.limit)},
        gate.severity,
    )


def columns_of_gates(
    gates: Sequence[GateSpec], measured: Mapping[str, float | None], domain: str
) -> dict[str, list[float]]:
    """Return the measured value of each gate's metric as a column of one row; NaN for no finite number."""
    numbers = {metric: measured_number(measured.get(metric)) for metric in (g.metric_of(domain) for g in gates)}
    return {metric: [math.nan if number is None else number] for metric, number in numbers.items()}


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
