"""Demonstrations with one planted fault at a time; each is refused in one sentence."""

import pytest

from moe_compress.errors import DataError, ParameterError
from moe_compress.gates.demonstrations import (
    DemonstrationLimits,
    DemonstrationSet,
    check_demonstrations,
    normalised,
)

LIMITS = DemonstrationLimits(min_rows=3, min_tokens=4, max_tokens=20)
GOOD = [{"id": f"m{i}", "question": f"Which chapter holds code {i}?", "answer": f"Chapter {i}"} for i in range(4)]
BENCHMARK = ("Which chapter holds code 77?",)


def rows_with(position, **changes):
    return [{**row, **changes} if i == position else row for i, row in enumerate(GOOD)]


def check(rows, lengths=None, benchmark=BENCHMARK):
    lengths = [10] * len(rows) if lengths is None else lengths
    check_demonstrations(DemonstrationSet("medical", rows, lengths, benchmark), LIMITS)


def test_good_rows_pass():
    check(GOOD)
    check(GOOD, [4, 20, 10, 10])  # the limits themselves pass


def test_leakage_names_count_first_question_row_and_file():
    rows = [
        *GOOD,
        *({**GOOD[0], "id": f"x{i}", "question": f"Which  chapter holds CODE {70 + i} ?"} for i in range(3)),
    ]
    benchmark = [f"Which chapter holds code {70 + i}?" for i in range(3)]
    with pytest.raises(DataError) as caught:
        check(rows, benchmark=benchmark)
    assert str(caught.value) == (
        "3 demonstrations of domain 'medical' are also in its benchmark "
        "(first: 'Which  chapter holds CODE 70 ?', row 5); remove them from demonstrations.jsonl"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            rows_with(1, question="  "),
            "1 demonstration of domain 'medical' has no text under 'question'.*row 2",
        ),
        (rows_with(2, answer=None), "has no text under 'answer'.*row 3"),
        (rows_with(2, answer=7), "has no text under 'answer'.*row 3"),
        (
            [{k: v for k, v in row.items() if k != "id"} for row in GOOD],
            "4 demonstrations .* have no text under 'id'",
        ),
        (rows_with(3, id="m0"), "repeats the id of an earlier row.*row 4"),
        (
            rows_with(3, question="which chapter holds code 0"),
            "asks the question of an earlier row again.*row 4",
        ),
        (
            GOOD[:2],
            r"has 2 demonstrations, fewer than 3 \(data.min_demonstrations\); add rows to demonstrations.jsonl",
        ),
        (rows_with(0, question="Which chapter holds code 77"), "is also in its benchmark.*row 1"),
    ],
)
def test_a_fault_is_refused_with_its_row(rows, message):
    with pytest.raises(DataError, match=message):
        check(rows)


@pytest.mark.parametrize("length", [3, 21])
def test_a_text_too_short_or_long_is_refused(length):
    with pytest.raises(
        DataError,
        match=rf"is outside data.min_tokens=4 to data.max_tokens=20 tokens \({length} in the first\).*row 3",
    ):
        check(GOOD, [10, 10, length, 10])


def test_token_lengths_belong_to_rows():
    with pytest.raises(DataError, match="4 rows but 3 token lengths"):
        check(GOOD, [10, 10, 10])


def test_a_long_question_is_cut_in_the_message():
    with pytest.raises(DataError, match=r"first: 'q{57}\.\.\.', row 1"):
        check(rows_with(0, question="q" * 300, answer=""))


@pytest.mark.parametrize("limits", [(0, 1, 2), (1, 3, 2), (1, -1, 2)])
def test_limits_that_fit_no_data_are_refused(limits):
    with pytest.raises(ParameterError, match="fit no data"):
        DemonstrationLimits(*limits)


def test_normalising_keeps_signs_and_drops_layout():
    assert normalised(" What\n IS  3 + 4 ?") == normalised("what is 3 + 4")
    assert normalised("What is 3 + 4?") != normalised("What is 3 - 4?")
    assert normalised("What is -4?") != normalised("What is 4?")
    assert normalised("\uff37hat?") == "what"  # a full-width W is a W
