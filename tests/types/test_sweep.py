"""The smallest plan that passes is chosen, and a result whose choice does not pass is none."""

from dataclasses import replace

import pytest

from moe_compress.errors import EvaluationError
from moe_compress.types import SweepEntry, SweepResult, choose_smallest

ENTRY = SweepEntry("easy_ep", 0.5, (8, 8), "0" * 64, 0.6, 100, 80, (0.7, 0.9), {"kl.domain": 0.1})


def test_the_smallest_that_passes_and_the_better_of_equal_ones():
    entries = (
        ENTRY,
        replace(ENTRY, size_ratio=0.4, failures=("accuracy is 0.2, must be at least 0.5",)),
        replace(ENTRY, size_ratio=0.3, measured={}, dropped_for="reap"),
        replace(ENTRY, num_right=90),
        replace(ENTRY, size_ratio=0.7, num_right=100),
    )
    assert choose_smallest(entries) == 3
    assert choose_smallest(entries[1:3]) is None


def test_the_best_of_a_budget_stayed_to_the_end():
    better = replace(ENTRY, num_right=100, dropped_for="reap")
    result = SweepResult(
        "medical", 90, 100, (0.8, 0.95), 0.25, (better, ENTRY, replace(ENTRY, fraction_dropped=0.1))
    )
    assert result.best_at(0.5) is ENTRY and result.fractions == (0.1, 0.5) and result.choice is None


def test_a_choice_that_does_not_pass_is_refused():
    failing = replace(ENTRY, failures=("too bad",))
    with pytest.raises(EvaluationError, match="the sweep of 'medical' chose easy_ep, which does not pass"):
        SweepResult("medical", 90, 100, (0.8, 0.95), 0.25, (failing,), chosen=0)
