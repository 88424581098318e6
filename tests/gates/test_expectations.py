"""Great Expectations must reach the verdicts of the plain code, and its pages must tell nobody."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from moe_compress.errors import DataError
from moe_compress.gates.decide import decide, parse_gates
from moe_compress.gates.demonstrations import DemonstrationLimits, DemonstrationSet, check_demonstrations
from moe_compress.gates.expectations import record_demonstrations, record_gates
from moe_compress.types import GateReport

GATES = parse_gates(
    [
        {"name": "kept", "metric": "share_kept.{domain}", "at_least": 0.85, "description": "accuracy kept"},
        {"name": "kept_well", "metric": "share_kept.{domain}", "at_least": 0.95, "severity": "warning"},
        {"name": "size", "metric": "bytes_share", "at_most": 0.7},
    ]
)
LIMITS = DemonstrationLimits(min_rows=3, min_tokens=4, max_tokens=20)
GOOD = [{"id": f"m{i}", "question": f"Which chapter holds code {i}?", "answer": f"Chapter {i}"} for i in range(4)]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tmp_path_factory.mktemp("reporting") / "gx"


@pytest.mark.parametrize(
    "measured",
    [
        {"share_kept.medical": 0.97, "bytes_share": 0.7},
        {"share_kept.medical": 0.85, "bytes_share": 0.5},
        {"share_kept.medical": 0.8, "bytes_share": 0.7000001},
        {"share_kept.medical": float("nan"), "bytes_share": 0.5},
        {"share_kept.medical": float("inf"), "bytes_share": float("-inf")},
        {"share_kept.medical": None},
        {},
    ],
)
def test_the_suite_agrees_with_decide_gate_by_gate(measured, context):
    report = decide(GATES, measured, "medical")
    record = record_gates(report, context)
    failed = {failure.name for failure in record.failures}
    assert failed == {outcome.name for outcome in report.outcomes if not outcome.passed}
    assert record.success == report.passed


def test_random_values_agree_too(context):
    rng = np.random.default_rng(0)
    for kept, size in rng.uniform([0.7, 0.6], [1.0, 0.8], size=(3, 2)):
        measured = {"share_kept.math": kept, "bytes_share": size}
        failed = {f.name for f in record_gates(decide(GATES, measured, "math"), context).failures}
        assert failed == {o.name for o in decide(GATES, measured, "math").outcomes if not o.passed}


def test_no_gates_prove_nothing(context):
    assert not record_gates(GateReport("empty", ()), context).success


def test_a_failure_says_what_was_asked_and_what_was_seen(context):
    record = record_gates(decide(GATES, {"share_kept.medical": 0.8, "bytes_share": 0.5}, "medical"), context)
    kept = next(failure for failure in record.failures if failure.name == "kept")
    assert kept.description == "kept: share_kept.medical at least 0.85 (accuracy kept)"
    assert (kept.observed, kept.severity) == ((0.8,), "critical")
    assert "share_kept.medical at least 0.85" in "".join(
        page.read_text() for page in record.data_docs.parent.rglob("validations/**/*.html")
    )


def test_the_pages_load_no_remote_image(context):
    record = record_gates(decide(GATES, {"share_kept.medical": 0.9, "bytes_share": 0.5}, "medical"), context)
    pages = [*record.data_docs.parent.rglob("*.html"), *record.data_docs.parent.rglob("*.css")]
    assert record.data_docs in pages
    text = "".join(page.read_text() for page in pages)
    assert not re.search(r"<img[^>]*//", text)
    assert "great-expectations-web-assets" not in text
    assert "dataContextId" not in text


def test_two_threads_can_record_at_once_and_loggers_are_left_as_they_were(context):
    logger = logging.getLogger("great_expectations")
    before = logger.level
    measured = {"share_kept.code": 0.9, "share_kept.law": 0.5, "bytes_share": 0.5}
    with ThreadPoolExecutor(2) as pool:
        code, law = pool.map(lambda domain: record_gates(decide(GATES, measured, domain), context), ["code", "law"])
    assert (code.success, law.success) == (True, False)
    assert logger.level == before


def test_another_process_at_the_same_context_is_waited_for(context):
    measured = {"share_kept.medical": 0.9, "bytes_share": 0.5}
    with ThreadPoolExecutor(1) as pool:
        with FileLock(context / ".lock"):
            waiting = pool.submit(record_gates, decide(GATES, measured, "medical"), context)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
        assert waiting.result(timeout=60).success


def test_pages_are_named_as_the_folder_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = record_gates(decide(GATES, {}, "medical"), Path("reporting/gx"))
    assert record.data_docs == Path("reporting/gx/uncommitted/data_docs/local_site/index.html")
    assert record.data_docs.is_file()


def planted(**changes):
    return [GOOD[0], GOOD[1], {**GOOD[2], **changes}, GOOD[3]]


@pytest.mark.parametrize(
    ("rows", "lengths", "failed", "positions"),
    [
        (GOOD, [10] * 4, set(), ()),
        (planted(question="Which chapter holds code 77"), [10] * 4, {"no_leakage"}, (3,)),
        (planted(question="which chapter holds CODE 0"), [10] * 4, {"unique_questions"}, (1, 3)),
        (planted(id="m0"), [10] * 4, {"unique_ids"}, (1, 3)),
        (planted(answer=" "), [10] * 4, {"answer_filled"}, (3,)),
        (GOOD, [10, 10, 21, 10], {"token_lengths"}, (3,)),
        (GOOD[:2], [10] * 2, {"enough_rows"}, ()),
    ],
)
def test_demonstrations_fail_here_when_they_fail_the_plain_checks(rows, lengths, failed, positions, context):
    demonstrations = DemonstrationSet("medical", rows, lengths, ["Which chapter holds code 77?"])
    record = record_demonstrations(demonstrations, LIMITS, context)
    assert {failure.name for failure in record.failures} == failed
    assert record.success == (not failed)
    assert tuple(row for failure in record.failures for row in failure.rows) == positions
    if failed:
        with pytest.raises(DataError):
            check_demonstrations(demonstrations, LIMITS)
    else:
        check_demonstrations(demonstrations, LIMITS)


def test_an_expectation_that_cannot_be_evaluated_is_a_failure_with_its_reason(context):
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in GOOD]
    record = record_demonstrations(DemonstrationSet("medical", rows, [10] * 4), LIMITS, context)
    failures = {failure.name: failure for failure in record.failures}
    assert set(failures) == {"has_answer", "answer_filled"}
    assert 'could not be evaluated: Error: The column "answer"' in failures["answer_filled"].description
