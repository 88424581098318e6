"""Numbers as people read them."""

import math
from dataclasses import replace

import pytest

from moe_compress.reporting import wording
from moe_compress.types import Agreement, GateOutcome, TaskComparison

MINUS, GAP, DASH = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}", "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (9_878_580, "9.88 MB"),
        (9_996_000, "10.0 MB"),
        (16_273_204, "16.3 MB"),
        (688_600_000_000, "689 GB"),
        (999_600_000, "1.00 GB"),
    ],
)
def test_size(value: float, text: str) -> None:
    assert wording.size(value) == text.replace(" ", GAP)


@pytest.mark.parametrize(("value", "text"), [(812, "812"), (8_134_528, "8.13 M"), (671_026_419_200, "671 B")])
def test_count(value: float, text: str) -> None:
    assert wording.count(value) == text.replace(" ", GAP)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.81274, 4, "0.8127"),
        (999.96, 4, "1000"),
        (9999.4, 4, "9999"),
        (9999.7, 4, "10,000"),
        (-9999.7, 4, f"{MINUS}10,000"),
        (99.7, 2, "100"),
        (12345.6, 4, "12,346"),
    ],
)
def test_a_number_is_plain_also_where_it_is_rounded_up(value: float, digits: int, text: str) -> None:
    assert wording.number(value, digits) == text


def test_a_difference_is_plain_also_where_it_is_rounded_up() -> None:
    assert [wording.difference(0, more) for more in (9.99, 999.4, 999.7, -999.7)] == [
        "+9.99",
        "+999",
        "+1,000",
        f"{MINUS}1,000",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(-0.01, f"{MINUS}1.0"), (0.0151, "+1.5"), (0.0, "0.0"), (-0.0001, "0.0")]
)
def test_points(value: float, text: str) -> None:
    assert wording.points(value) == text


def test_missing_values_are_a_dash_and_never_zero() -> None:
    assert wording.percent(math.nan) == wording.percent(None) == DASH
    assert wording.number(None) == wording.number(math.nan) == DASH
    assert wording.percent_interval(math.nan, 1.0) == DASH
    assert wording.change(None, 3.0) == wording.change(0, 3.0) == wording.change(2.0, None) == DASH


def test_change_is_relative_and_signed() -> None:
    assert wording.change(200, 150) == f"{MINUS}25.0{GAP}%"
    assert wording.change(200, 250) == f"+25.0{GAP}%"


def test_p_value_is_cut_below() -> None:
    assert [wording.p_value(value) for value in (1.0, 0.0449, 0.00099)] == ["1.000", "0.045", "< 0.001"]


def test_an_unmeasured_gate_says_so() -> None:
    gate = GateOutcome("kl_to_base", None, "at_most", 0.1, "critical", False, "")
    assert wording.reason(gate) == "kl_to_base: observed not measured, limit at most 0.1"
    assert wording.verdict(gate) == "failed"


def test_flatten_keeps_every_leaf() -> None:
    nested = {"select": {"budget": 32, "weights": {}, "domains": ["a", "b"]}, "seed": None, "tasks": []}
    assert wording.flatten(nested) == {
        "select.budget": "32",
        "select.weights": "none",
        "select.domains": "a, b",
        "seed": "none",
        "tasks": "none",
    }


def test_a_baseline_that_guesses_has_no_share_kept() -> None:
    comparison = TaskComparison(
        "aime", 30, 0.25, 0.25, 0.2, -0.05, -0.2, 0.1, math.nan, math.nan, math.nan, 1, 2, 1.0
    )
    sentence = wording.accuracy_sentence(comparison)
    assert sentence.startswith(f"Accuracy on aime went from 25.0{GAP}% to 20.0{GAP}%")
    assert "above chance" not in sentence


def test_few_items_of_which_none_changed_prove_little() -> None:
    same = TaskComparison("quiz", 10, 0.25, 0.9, 0.9, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0, 0, 1.0)
    # (1 - 0.2589)^10 = 0.05
    assert wording.difference_interval(same) == f"none of 10 changed, at most 25.9{GAP}% do"
    assert "(0.0 points, 95" in wording.accuracy_sentence(same) and "25.9" in wording.accuracy_sentence(same)
    exchanged = replace(same, gained=1, lost=1, difference_low=-0.3, difference_high=0.3)
    assert wording.difference_interval(exchanged) == "\N{MINUS SIGN}30.0 to +30.0"


@pytest.mark.parametrize(
    ("jaccard", "chance", "effect"),
    [
        (1.0, 0.5, "little"),
        (0.9, 0.5, "little"),  # 94.7 % shared, 89 % of the way from chance
        (0.75, 0.5, "a few of them"),  # 85.7 % shared, 71 % of the way
        (0.5, 0.5, "much"),  # 66.7 % shared, a third of the way
        (0.9, 0.9, "much"),  # the same 94.7 % where 90 % come by chance
        (1.0, 1.0, "little"),
    ],
)
def test_agreement_counts_beyond_chance(jaccard: float, chance: float, effect: str) -> None:
    agreement = Agreement((0,), (jaccard,), (0.9,), {1: (0.9,), 40: (1.0,)}, ((1.0, 0.9), (0.9, 1.0)), chance)
    sentence = wording.agreement_sentence(agreement)
    assert sentence.startswith("Two random halves of the 40 demonstrations")
    assert sentence.endswith(f"more demonstrations would change {effect}.")
