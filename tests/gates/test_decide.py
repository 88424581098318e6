"""Gates decided by hand: limits, missing values, parameters and the message that stops a release."""

import math

import numpy as np
import pytest

from moe_compress.errors import GateFailedError, ParameterError
from moe_compress.gates.decide import GateSpec, decide, parse_gates, require
from moe_compress.types import GateReport

KEPT = {"name": "kept", "metric": "share_kept.medical", "at_least": 0.85}
SIZE = {"name": "size", "metric": "bytes_share", "at_most": 0.7}


@pytest.mark.parametrize(
    ("kept", "size", "passed"),
    [
        (0.85, 0.7, [True, True]),  # the limits themselves pass
        (0.8499999, 0.7, [False, True]),
        (0.9, 0.7000001, [True, False]),
        (1.2, 0.0, [True, True]),
        (np.float64(0.9), np.float32(0.5), [True, True]),
        (True, 1, [True, False]),  # a check that holds or not counts as 1 or 0
    ],
)
def test_a_value_passes_on_the_right_side_of_its_limit(kept, size, passed):
    report = decide(parse_gates([KEPT, SIZE]), {"share_kept.medical": kept, "bytes_share": size}, "medical")
    assert [outcome.passed for outcome in report.outcomes] == passed
    assert report.passed == all(passed)
    assert [outcome.observed for outcome in report.outcomes] == [float(kept), float(size)]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "0.9", np.nan])
def test_what_is_no_finite_number_fails_in_either_direction(value):
    gates = parse_gates([KEPT, {**SIZE, "metric": "share_kept.medical"}])
    report = decide(gates, {"share_kept.medical": value}, "medical")
    assert [(o.passed, o.observed) for o in report.outcomes] == [(False, None), (False, None)]
    assert "no finite number" in report.outcomes[0].description


def test_a_metric_that_was_not_measured_fails_and_lists_what_was():
    report = decide(parse_gates([KEPT]), {"share_kept.medicine": 0.9, "bytes_share": 0.5}, "medical")
    assert not report.passed
    assert report.outcomes[0].observed is None
    assert report.outcomes[0].description == (
        "'share_kept.medical' was not measured (did you mean 'share_kept.medicine'?); "
        "measured: bytes_share, share_kept"
    )


def test_a_gate_of_zero_at_least_is_not_passed_by_a_missing_value():
    gates = parse_gates([{"name": "any", "metric": "x", "at_least": 0}])
    assert not decide(gates, {}).passed
    assert decide(gates, {"x": 0.0}).passed


def test_the_domain_fills_the_metric_name():
    gates = parse_gates([{**KEPT, "metric": "share_kept.{domain}"}])
    measured = {"share_kept.math": 0.9, "share_kept.medical": 0.1}
    assert decide(gates, measured, "math").passed
    assert not decide(gates, measured, "medical").passed


def test_a_share_of_what_a_baseline_only_guesses_says_so():
    report = decide(parse_gates([KEPT, SIZE]), {"share_kept.medical": math.nan, "bytes_share": math.nan}, "medical")
    kept, size = (outcome.description for outcome in report.outcomes)
    assert "the baseline answers no better than guessing" in kept and "guessing" not in size


def test_a_warning_is_reported_and_does_not_block():
    gates = parse_gates([KEPT, {**SIZE, "severity": "warning", "description": "smaller on disk"}])
    report = decide(gates, {"share_kept.medical": 0.9, "bytes_share": 0.9}, "medical")
    assert [outcome.passed for outcome in report.outcomes] == [True, False]
    assert report.passed
    require(report, "report.html")


def test_require_names_each_failed_gate_its_value_its_limit_and_the_place():
    gates = parse_gates([KEPT, SIZE, {"name": "loads", "metric": "loads", "at_least": 1}])
    report = decide(gates, {"share_kept.medical": 0.8, "bytes_share": 0.6}, "medical")
    with pytest.raises(GateFailedError) as caught:
        require(report, "data/08_reporting/medical/report.html")
    assert str(caught.value) == (
        "the candidate for 'medical' failed 2 of 3 gates and is not released: "
        "kept is 0.8, must be at least 0.85; loads has no value ('loads' was not measured; "
        "measured: bytes_share, share_kept), must be at least 1; "
        "see data/08_reporting/medical/report.html"
    )


def test_a_near_miss_is_not_printed_as_its_own_limit():
    report = decide(parse_gates([KEPT]), {"share_kept.medical": 0.85 - 1e-8}, "medical")
    with pytest.raises(GateFailedError, match=r"is 0\.84999999, must be at least 0\.85"):
        require(report, "report.html")


def test_a_report_without_gates_releases_nothing():
    with pytest.raises(GateFailedError, match="put to no gate"):
        require(GateReport("medical", ()), "report.html")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "g", "metric": "m"}, "gives 0 limits"),
        ({**KEPT, "at_most": 1}, "gives 2 limits"),
        ({"name": "g", "metric": "m", "atleast": 1}, "did you mean 'at_least'"),
        ({"name": "", "metric": "m", "at_least": 1}, "needs a name"),
        ({"name": "g", "at_least": 1}, "needs a name and a metric"),
        ({**KEPT, "severity": "fatal"}, "severity 'fatal'; use critical or warning"),
        ({**KEPT, "at_least": math.nan}, "no finite number"),
        ({**KEPT, "at_least": "0.85"}, "no finite number"),
        ({**KEPT, "at_least": True}, "no finite number"),
    ],
)
def test_a_gate_that_cannot_be_decided_is_refused(entry, message):
    with pytest.raises(ParameterError, match=message):
        parse_gates([entry])


def test_an_unknown_direction_is_refused():
    with pytest.raises(ParameterError, match="direction 'above'; use at_least or at_most"):
        GateSpec("g", "m", "above", 1.0)  # type: ignore[arg-type]


def test_a_name_stands_once_in_parameters_and_in_decisions():
    with pytest.raises(ParameterError, match="'kept' is given 2 times"):
        parse_gates([KEPT, SIZE, KEPT])
    gate = GateSpec("kept", "m", "at_least", 1.0)
    with pytest.raises(ParameterError, match="'kept' is given 2 times"):
        decide([gate, gate], {"m": 1.0})
