"""Paired statistics against numbers worked by hand and against resampling the items one by one."""

import math
from dataclasses import replace

import numpy as np
import pytest

from moe_compress.errors import EvaluationError
from moe_compress.evaluation.compare import (
    compare_items,
    compare_results,
    mcnemar_p,
    pool_items,
    wilson_interval,
)
from moe_compress.types import EvaluationResult, ItemResult


def items(right, task="quiz", choices=4, answer=0):
    """One item per flag; a wrong one chose another answer."""
    return tuple(
        ItemResult(task, f"q{number}", (0.0,) * choices, answer if flag else answer + 1, answer)
        for number, flag in enumerate(right)
    )


def result(*groups):
    return EvaluationResult("any", tuple(item for group in groups for item in group), {}, 1, 1)


# 20 items: both right 8, only the baseline 6, only the candidate 1, neither 5.
BASELINE = items([True] * 14 + [False] * 6)
CANDIDATE = items([True] * 8 + [False] * 6 + [True] * 1 + [False] * 5)


def test_accuracies_flips_and_share_by_hand():
    found = compare_items(BASELINE, CANDIDATE)
    assert found.num_items == 20
    assert (found.baseline_accuracy, found.candidate_accuracy) == (14 / 20, 9 / 20)
    assert found.difference == pytest.approx(-5 / 20)
    assert (found.lost, found.gained) == (6, 1)
    assert found.chance == 0.25
    # (0.45 - 0.25) / (0.70 - 0.25)
    assert found.share_kept == pytest.approx(0.20 / 0.45)
    # 7 flips, at most 1 one way: 2 * (C(7,0) + C(7,1)) / 2^7 = 16 / 128
    assert found.p_value == pytest.approx(0.125)


def test_wilson_by_hand():
    # z = 1.96, p = 0.5, n = 100: centre 0.5, margin 1.96 sqrt(0.0025 + 0.0000960) / 1.038415 = 0.09617
    low, high = wilson_interval(50, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-4), pytest.approx(0.59617, abs=1e-4))
    # p = 0: from 0 to z^2 / (n + z^2) = 3.8415 / 13.8415
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson_interval(10, 10)[1] == 1.0


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1.0), (3, 3, 1.0), (5, 0, 0.0625), (0, 5, 0.0625)])
def test_mcnemar_by_hand(lost, gained, p):
    assert mcnemar_p(lost, gained) == pytest.approx(p)


def test_mcnemar_of_many_flips_does_not_overflow():
    assert 0 < mcnemar_p(1900, 2100) < 0.01


def test_intervals_are_those_of_resampling_the_items():
    found = compare_items(BASELINE, CANDIDATE, num_resamples=20_000)
    generator = np.random.default_rng(1)
    before = np.array([item.is_correct for item in BASELINE])
    after = np.array([item.is_correct for item in CANDIDATE])
    drawn = generator.integers(20, size=(20_000, 20))
    differences = (after[drawn].mean(1)) - (before[drawn].mean(1))
    expected = np.quantile(differences, [0.025, 0.975])
    assert (found.difference_low, found.difference_high) == pytest.approx(tuple(expected), abs=0.051)
    shares = (after[drawn].mean(1) - 0.25) / (before[drawn].mean(1) - 0.25)
    assert (found.share_kept_low, found.share_kept_high) == pytest.approx(
        tuple(np.quantile(shares, [0.025, 0.975])), abs=0.1
    )


def test_the_bootstrap_is_seeded():
    first, again = (compare_items(BASELINE, CANDIDATE, seed=3, num_resamples=500) for _ in range(2))
    assert first == again


def test_a_model_compared_with_itself_kept_everything():
    found = compare_items(BASELINE, BASELINE)
    assert (found.difference, (found.difference_low, found.difference_high)) == (0.0, (0.0, 0.0))
    assert (found.share_kept, (found.share_kept_low, found.share_kept_high)) == (1.0, (1.0, 1.0))
    assert found.p_value == 1.0


def test_no_share_of_nothing_passes_a_limit():
    guessing = items([True] + [False] * 3)
    found = compare_items(guessing, items([True] * 4))
    assert math.isnan(found.share_kept)
    assert not found.share_kept >= 0
    assert (found.share_kept_low, found.share_kept_high) == (-math.inf, math.inf)


def test_chance_is_that_of_the_items():
    two = items([True] * 3, choices=2)
    assert compare_items(two, two).chance == 0.5


def test_order_does_not_matter():
    assert compare_items(BASELINE, CANDIDATE[::-1]) == compare_items(BASELINE, CANDIDATE)


def test_tasks_are_compared_each_on_its_own():
    other = items([True, False], task="other")
    found = compare_results(result(BASELINE, other), result(other, CANDIDATE))
    assert list(found) == ["quiz", "other"]
    assert found["quiz"] == compare_items(BASELINE, CANDIDATE)
    assert found["other"].difference == 0.0


@pytest.mark.parametrize("others", [CANDIDATE[:-1], items([True] * 20, answer=1), (*CANDIDATE, CANDIDATE[0])])
def test_other_items_are_refused(others):
    with pytest.raises(EvaluationError, match="answered different items of 'quiz'"):
        compare_items(BASELINE, others)


def test_other_tasks_are_refused():
    with pytest.raises(EvaluationError, match="baseline was evaluated on quiz and candidate on other, quiz"):
        compare_results(result(BASELINE), result(CANDIDATE, items([True], task="other")))


def test_intervals_are_honest():
    """Of 200 pairs of models that are equally good, 92 to 98 of 100 intervals hold no difference."""
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        # Both answer an item rightly as often as it is easy, each by its own luck.
        ease = generator.beta(2, 1, size=300)
        before, after = (items(generator.random(300) < ease) for _ in range(2))
        found = compare_items(before, after, seed=number, num_resamples=2000)
        covered += found.difference_low <= 0 <= found.difference_high
    assert 0.92 <= covered / 200 <= 0.98


def test_noise_is_what_the_baseline_differs_from_itself():
    right = np.array([item.is_correct for item in BASELINE])
    generator = np.random.default_rng(0)
    one, other = (right[generator.integers(20, size=(20_000, 20))].mean(1) for _ in range(2))
    found = compare_items(BASELINE, CANDIDATE)
    # z sqrt(2 * 0.7 * 0.3 / 20) = 1.96 * 0.14491
    assert found.noise == pytest.approx(0.28403, abs=1e-4)
    assert np.mean(abs(one - other) <= found.noise) == pytest.approx(0.95, abs=0.03)
    assert found.effect == pytest.approx(-0.25 / 0.28403, abs=1e-3)
    assert math.isnan(compare_items(items([True] * 3), items([True] * 3)).effect)


def test_a_domains_benchmarks_are_pooled_in_pairs():
    asked = [replace(item, question="what?") for item in items([False, True, True], task="exam")]
    before = result(BASELINE, items([True] * 5, task="other"), asked)
    after = result(CANDIDATE, items([False] * 5, task="other"), [replace(item, chosen=0) for item in asked])
    pooled = [pool_items(each, ["quiz"]) for each in (before, after)]
    assert [len(each) for each in pooled] == [23, 23] and len({item.item for item in pooled[0]}) == 23
    found = compare_items(*pooled)
    # Of quiz 14 and 9, of exam 2 and 3; the third exam question was a gain.
    assert (found.baseline_accuracy, found.candidate_accuracy) == (16 / 23, 12 / 23)
    assert (found.lost, found.gained) == (6, 2)
    # One task alone is itself.
    assert pool_items(result(BASELINE), ["quiz"]) == ()


def test_written_answers_are_compared_in_pairs_with_no_chance_of_guessing():
    def written(rights):
        return tuple(
            ItemResult("sums", str(n), (), "21" if right else "", "21", "1 and 20?", "text", 1, right)
            for n, right in enumerate(rights)
        )

    found = compare_items(written([True] * 6 + [False] * 2), written([True] * 3 + [False] * 4 + [True]))
    assert (found.chance, found.baseline_accuracy, found.candidate_accuracy) == (0, 0.75, 0.5)
    assert (found.lost, found.gained, found.share_kept) == (3, 1, pytest.approx(2 / 3))
    assert found.p_value == mcnemar_p(3, 1)
