"""Dealing items out: nothing is seen twice, and too few items is an error."""

from __future__ import annotations

import dataclasses

import pytest

from moe_compress.errors import DataError
from moe_compress.reference.items import DomainItems, Item
from moe_compress.reference.splits import SplitSizes, check_disjoint, digest, split_digests, split_domain

SIZES = SplitSizes(demonstrations=4, calibration=3, heldout=2)


def make_domain(number=60, facts_stay=True):
    items = tuple(
        Item(
            "colour",
            f"Which colour has thing {n}?",
            f"shade {n % 12}",
            f"Thing {n} is so.",
            (f"Thing {n}: {n % 12}.",),
        )
        for n in range(number)
    )
    return DomainItems("things", items, ("A passage.",), {"colour": 10}, facts_stay)


def test_benchmark_questions_are_not_in_training_but_their_facts_are():
    splits = split_domain(make_domain(), SIZES, seed=0)
    asked = [str(row["question"]) for row in splits.benchmark]
    assert len(asked) == 10
    assert not [text for text in splits.training for question in asked if question in text]
    numbers = [question.removeprefix("Which colour has thing ").rstrip("?") for question in asked]
    assert all(any(text.startswith(f"Thing {number}:") for text in splits.training) for number in numbers)


def test_facts_leave_where_the_domain_says_so():
    splits = split_domain(make_domain(facts_stay=False), SIZES, seed=0)
    numbers = [str(row["question"]).split()[-1].rstrip("?") for row in splits.benchmark]
    assert not [text for text in splits.training for number in numbers if text.startswith(f"Thing {number}:")]


def test_heldout_facts_never_stay():
    splits = split_domain(make_domain(), SIZES, seed=0)
    assert not {row["text"] for row in splits.heldout} & set(splits.training)


def test_splitting_is_repeatable_and_follows_the_seed():
    assert split_domain(make_domain(), SIZES, seed=0) == split_domain(make_domain(), SIZES, seed=0)
    assert split_domain(make_domain(), SIZES, seed=0) != split_domain(make_domain(), SIZES, seed=1)


def test_wrong_choices_are_never_also_right():
    domain = make_domain()
    items = tuple(dataclasses.replace(item, also_right=("Shade 1!",)) for item in domain.items)
    splits = split_domain(dataclasses.replace(domain, items=items), SIZES, seed=0)
    wrong = [
        choice for row in splits.benchmark for place, choice in enumerate(row["choices"]) if place != row["answer"]
    ]
    assert "shade 1" not in wrong


def test_too_few_items_is_an_error():
    with pytest.raises(DataError, match=r"things has 15 questions of kind 'colour' left for benchmark.*20"):
        split_domain(make_domain(number=15), SIZES, seed=0)


def test_a_shared_text_is_an_error_whatever_its_signs():
    splits = split_domain(make_domain(), SIZES, seed=0)
    question = splits.benchmark[0]["question"]
    leaking = dataclasses.replace(splits, training=(*splits.training, f"question: {question.upper()}"))
    assert digest("Thing 3: RED") == digest("thing 3 red")
    check_disjoint(split_digests(splits), "things")
    with pytest.raises(DataError, match="both training and benchmark"):
        check_disjoint(
            split_digests(dataclasses.replace(leaking, training=(f"Question: {question}\nAnswer: x",))), "things"
        )
