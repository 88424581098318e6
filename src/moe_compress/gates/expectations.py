"""Record gates and data checks as Great Expectations suites with Data Docs; the verdict is `decide`'s."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_compress.gates.decide import Severity
from moe_compress.gates.demonstrations import DemonstrationLimits, DemonstrationSet
from moe_compress.gates.suites import (
    Expected,
    columns_of_demonstrations,
    columns_of_gates,
    expected_of_demonstrations,
    expected_of_gate,
)
from moe_compress.quiet import hold_back
from moe_compress.types import GateReport

# File contexts share YAML state among threads, and their files with the processes of other domains.
_ONE_CONTEXT_AT_A_TIME = threading.Lock()
# Data Docs load their logo from a server that learns of every opening, with the context's id.
_REMOTE_IMAGE = re.compile(r"<img\b[^>]*\bsrc\s*=\s*[\"']?(?:https?:)?//[^>]*>", re.IGNORECASE)
_REMOTE_BACKGROUND = re.compile(r"url\(\s*[\"']?(?:https?:)?//[^)]*\)", re.IGNORECASE)


Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class ExpectationFailure:
    """One expectation that was not met.

    Attributes:
        name: the gate's name, or the check's.
        description: what was expected, with the library's own message if it could not be evaluated.
        severity: `critical` or `warning`.
        observed: the value seen, or examples of unexpected ones.
        rows: positions of offending rows, counted from 1; at most 20.
    """

    name: str
    description: str
    severity: Severity
    observed: tuple[object, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class ExpectationsRecord:
    """What Great Expectations found, and where its pages stand.

    Attributes:
        success: whether no critical expectation failed.
        failures: every failed expectation, warnings too.
        data_docs: the index page of the Data Docs, relative if the context's folder was given so.
    """

    success: bool
    failures: tuple[ExpectationFailure, ...]
    data_docs: Path


def record_gates(report: GateReport, folder: Path, what: str = "gates") -> ExpectationsRecord:
    """Run decided gates as a suite over a one-row table of the observed values and write its Data Docs.

    Args:
        report: the gates as they were decided; the library compares values and limits once more.
        folder: the Great Expectations context, created if missing; history accumulates in it.
        what: what was gated; with the domain it names suite and run.
    """
    expected = [item for outcome in report.outcomes for item in expected_of_gate(outcome)]
    return _run(f"{what}_{report.domain}", columns_of_gates(report), expected, folder)


def record_demonstrations(
    demonstrations: DemonstrationSet, limits: DemonstrationLimits, folder: Path
) -> ExpectationsRecord:
    """Run the checks of `demonstrations.py` as a suite over the rows and write its Data Docs.

    Args:
        demonstrations: the rows, and the benchmark questions none of them may repeat.
        limits: how many rows, and tokens per row, there must be.
        folder: the Great Expectations context, created if missing.
    """
    columns = columns_of_demonstrations(demonstrations)
    expected = list(expected_of_demonstrations(limits))
    return _run(f"demonstrations_{demonstrations.domain}", columns, expected, folder)


def _run(name: str, columns: Columns, expected: Sequence[Expected], folder: Path) -> ExpectationsRecord:
    """Validate one table in a file context and return what failed, with clean Data Docs written."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with _ONE_CONTEXT_AT_A_TIME, FileLock(folder / ".lock"), _quiet():
        result = _validate(name, columns, expected, folder.resolve())
    site = folder / "uncommitted" / "data_docs" / "local_site"
    failures = tuple(
        _failure(found.to_json_dict())
        for validation in result.run_results.values()
        for found in validation.results
        if not found.success
    )
    # Expecting nothing proves nothing, as in `GateReport.passed`.
    success = bool(expected) and all(failure.severity != "critical" for failure in failures)
    return ExpectationsRecord(success, failures, site / "index.html")


def _validate(name: str, columns: Columns, expected: Sequence[Expected], folder: Path) -> Any:
    """Return the checkpoint result of one suite; what a former run stored under its name is replaced."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.checkpoint import Checkpoint, UpdateDataDocsAction
    from great_expectations.core.run_identifier import RunIdentifier

    context = gx.get_context(mode="file", context_root_dir=str(folder))
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_or_update_pandas(name).add_dataframe_asset(name)
    suite = gx.ExpectationSuite(name=name, expectations=[_expectation(item) for item in expected])
    definition = gx.ValidationDefinition(
        name=name,
        data=asset.add_batch_definition_whole_dataframe("all_rows"),
        suite=context.suites.add_or_update(suite),
    )
    definition = context.validation_definitions.add_or_update(definition)
    checkpoint = Checkpoint(
        name=name,
        validation_definitions=[definition],
        actions=[UpdateDataDocsAction(name="write_data_docs")],
        result_format="SUMMARY",
    )
    checkpoint = context.checkpoints.add_or_update(checkpoint)
    result = checkpoint.run(
        batch_parameters={"dataframe": pd.DataFrame(columns)}, run_id=RunIdentifier(run_name=name)
    )
    _drop_remote_images(folder / "uncommitted" / "data_docs")
    return result


def _expectation(item: Expected) -> Any:
    import great_expectations.expectations as kinds

    return getattr(kinds, item.kind)(
        **item.arguments, severity=item.severity, description=item.description, meta={"name": item.name}
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the library's warnings and its informational log, which speak of its own insides."""
    with hold_back("great_expectations"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _failure(found: Mapping[str, Any]) -> ExpectationFailure:
    config, result = found["expectation_config"], found["result"]
    error = _error_in(found["exception_info"])
    observed = result.get("partial_unexpected_list", [result[k] for k in ("observed_value",) if k in result])
    return ExpectationFailure(
        name=config["meta"]["name"],
        description=f"{config['description']}, but it could not be evaluated: {error}"
        if error
        else config["description"],
        severity=config["severity"],
        observed=tuple(observed),
        rows=tuple(position + 1 for position in result.get("partial_unexpected_index_list", ())),
    )


def _error_in(info: Mapping[str, Any]) -> str | None:
    """Return the exception's message; the library nests it one level down when a metric raised it."""
    nested = [info, *(value for value in info.values() if isinstance(value, Mapping))]
    return next((level["exception_message"] for level in nested if level.get("exception_message")), None)


def _drop_remote_images(folder: Path) -> None:
    """Take remote images out of all pages; remote styles and scripts stay, because the tables need them."""
    for path in (*folder.rglob("*.html"), *folder.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        clean = _REMOTE_BACKGROUND.sub("none", _REMOTE_IMAGE.sub("", text))
        if clean != text:
            path.write_text(clean, encoding="utf-8")
