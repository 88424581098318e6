"""Relative limits worked by hand, what is waived, and what is refused."""

import pytest

from moe_compress.errors import ParameterError
from moe_compress.gates.decide import decide, describe_failure, parse_gates
from moe_compress.gates.limits import RelativeLimit, Resolved, parse_limit, resolve

KEPT = {"name": "kept", "metric": "accuracy.domain", "at_least": {"of": "baseline", "times": 0.95}}
MATCHED = {"name": "matched", "metric": "accuracy.domain", "at_least": {"of": "champion", "plus": -0.02}}


def verdict(entry, value, **references):
    (outcome,) = decide(parse_gates([entry]), {"accuracy.domain": value}, "medical", **references).outcomes
    return outcome


def test_a_share_of_the_baseline():
    baseline = {"accuracy.domain": 0.8}  # 0.95 * 0.8 = 0.76
    assert verdict(KEPT, 0.77, baseline=baseline).passed
    failed = verdict(KEPT, 0.75, baseline=baseline)
    assert not failed.passed and failed.limit == pytest.approx(0.76)
    assert describe_failure(failed) == "kept is 0.75, must be at least 0.76 (0.95 times the baseline's 0.8)"


def test_a_missing_champion_passes_and_says_so_a_missing_value_of_his_does_not():
    waived = verdict(MATCHED, 0.1, champion=None)
    assert waived.passed and waived.limit is None and waived.basis == "there is no champion yet"
    unknown = verdict(MATCHED, 0.9, champion={"accuracy.math": 0.5})
    assert not unknown.passed
    assert describe_failure(unknown) == (
        "matched is 0.9, must be at least a limit that is not known "
        "(no measured 'accuracy.domain' of the champion to compare with)"
    )
    assert verdict(MATCHED, 0.88, champion={"accuracy.domain": 0.9}).passed
    assert verdict(MATCHED, 0.87, champion={"accuracy.domain": 0.9}).basis == "the champion's 0.9 minus 0.02"


@pytest.mark.parametrize("baseline", [{}, {"accuracy.domain": float("nan")}])
def test_a_baseline_without_the_value_fails(baseline):
    assert not verdict(KEPT, 1.0, baseline=baseline).passed


def test_nothing_measured_does_not_pass_for_want_of_a_champion():
    (outcome,) = decide(parse_gates([MATCHED]), {}, "medical").outcomes
    assert not outcome.passed and outcome.observed is None


def test_the_low_end_of_an_interval():
    (gate,) = parse_gates([{"name": "g", "metric": "share_kept.domain", "bound": "low", "at_least": 0.8}])
    assert gate.metric == "share_kept.domain.low"
    assert not decide([gate], {"share_kept.domain": 0.9, "share_kept.domain.low": 0.79}).passed


@pytest.mark.parametrize(
    ("value", "direction", "limit", "told"),
    [
        (0.307123456, "at_least", 0.8, "0.3071"),
        (0.5, "at_least", 0.8, "0.5"),
        (0.799999912, "at_least", 0.8, "0.7999999"),  # not 0.8, which would pass
        (0.307139999, "at_most", 0.30713, "0.30714"),  # not 0.3071, which would pass
        (0.30713, "at_most", 0.1 + 0.2, "0.3071"),
        (1.0000000000000002, "at_most", 1.0, "1.0000000000000002"),
        (0.000123456, "at_least", 1.0, "0.0001235"),
        (123456.789, "at_most", 70000.0, "123457"),
        (-0.123456, "at_least", 0.0, "-0.1235"),
    ],
)
def test_a_failed_value_is_told_in_digits_that_show_its_side_of_the_limit(value, direction, limit, told):
    gates = parse_gates([{"name": "kept", "metric": "any", direction: limit}])
    (failed,) = decide(gates, {"any": value}).outcomes
    assert failed.observed == value
    assert describe_failure(failed) == f"kept is {told}, must be {direction.replace('_', ' ')} {limit:g}"


def test_a_limit_has_as_many_digits_as_it_takes_beside_a_value_next_to_it():
    gates = parse_gates([{"name": "kept", "metric": "any", "at_least": 0.80000012}])
    (failed,) = decide(gates, {"any": 0.80000009}).outcomes
    assert describe_failure(failed) == "kept is 0.80000009, must be at least 0.80000012"


def test_a_place_is_told():
    gates = parse_gates([{"name": "drift", "metric": "router_drift", "at_most": 0.3}])
    (failed,) = decide(gates, {"router_drift": 0.5}, places={"router_drift": "layer 3"}).outcomes
    assert describe_failure(failed) == "drift is 0.5 (layer 3), must be at most 0.3"


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"of": "champions"}, "has of: 'champions' in at_least; write of: baseline or champion"),
        ({"times": 2}, "has of: None"),
        ({"of": "baseline", "time": 2}, "has the unknown key 'time' in at_least"),
        ({"of": "baseline", "times": "2"}, "'2', which is no finite number; set at_least.times"),
    ],
)
def test_a_limit_that_is_none(limit, message):
    with pytest.raises(ParameterError, match=message):
        parse_limit("g", "at_least", limit)


def test_an_unknown_bound():
    with pytest.raises(ParameterError, match="bound 'lower'; use low or high"):
        parse_gates([{"name": "g", "metric": "m", "bound": "lower", "at_least": 1}])


def test_plain_numbers_need_no_reference():
    assert resolve(0.5, "m", {}, None) == Resolved(0.5)
    assert resolve(RelativeLimit("champion", 2.0, 1.0), "m", {}, {"m": 3.0}).value == 7.0
