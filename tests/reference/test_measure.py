"""Measuring: likelihoods against a plain loop, intervals by hand, and masking experts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.reference.conftest import TINY

from moe_compress.reference import measure, page, train
from moe_compress.reference.tokenizer import train_tokenizer

TEXTS = ["Question: which red fox runs?\nAnswer: the quick one", "a lazy dog sleeps in the sun"] * 9
ROWS = [
    {"kind": "a", "question": "which fox?", "choices": ["the quick one", "red", "a dog", "sun"], "answer": 0},
    {"kind": "b", "question": "who sleeps?", "choices": ["fox", "a lazy dog", "red sun", "one"], "answer": 1},
]


@pytest.fixture(scope="module")
def subject():
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, context_length=128)
    config = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    return measure.Model(train.build_model(config, seed=2).eval(), tokenizer)


def test_answers_are_the_likeliest_choices(subject):
    expected = []
    for row in ROWS:
        prompt = f"Question: {row['question']}\nAnswer:"
        scores = []
        for choice in row["choices"]:
            before = subject.tokenizer.encode(prompt)
            ids = before + subject.tokenizer.encode(f" {choice}")
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                logs = subject.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            scores.append(sum(float(logs[n - 1, ids[n]]) for n in range(len(before), len(ids))))
        expected.append(int(np.argmax(scores)))
    assert measure.answers(subject, ROWS).tolist() == expected


def test_accuracy_is_counted_by_kind():
    found = measure.accuracy_by_kind(ROWS, np.array([0, 3]))
    assert {kind: (value.right, value.total) for kind, value in found.items()} == {
        "all": (1, 2),
        "a": (1, 1),
        "b": (0, 1),
    }


def test_wilson_interval_by_hand():
    # p = 1/2, n = 4, z = 1.96: centre (0.5 + 0.4802) / 1.9604 = 0.5,
    # half-width 1.96 * sqrt(0.0625 + 0.0600) / 1.9604 = 0.35.
    low, high = measure.Accuracy(2, 4).interval
    assert (low, high) == (pytest.approx(0.1500, abs=1e-3), pytest.approx(0.8500, abs=1e-3))


def test_heldout_loss_of_a_model_that_knows_nothing_is_near_log_vocabulary(subject):
    assert measure.heldout_loss(subject, TEXTS[:2]) == pytest.approx(np.log(len(subject.tokenizer)), abs=0.3)


def test_routing_shares_sum_to_one_and_masked_experts_get_none(subject):
    kept = np.zeros((2, 6), dtype=bool)
    kept[:, [1, 4, 5]] = True
    before = measure.routing_LE(subject, TEXTS[:2])
    with measure.only_experts(subject.model, kept):
        masked = measure.routing_LE(subject, TEXTS[:2])
    assert before.sum(axis=1) == pytest.approx([1, 1])
    assert (before > 0).sum() > 6
    assert masked[~kept].sum() == 0
    assert np.array_equal(measure.routing_LE(subject, TEXTS[:2]), before)


def test_best_experts_takes_the_highest_of_each_layer():
    shares = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.3, 0.2]])
    assert measure.best_experts(shares, 2).tolist() == [[False, True, False, True], [True, False, True, False]]


def test_share_left_counts_from_chance():
    # 0.55 is 0.30 above chance, 0.85 is 0.60 above.
    assert measure.share_left(0.55, 0.85) == pytest.approx(0.5)
    assert measure.share_left(0.55, 0.25) == 0.0


def test_everything_measured_goes_onto_the_page(subject):
    domains = [measure.DomainRows(name, ROWS, TEXTS[:1], TEXTS[:2]) for name in ("math", "code")]
    measured = measure.measure(subject, domains, seed=0)
    facts = {"config": dict(TINY), "parameters": 10, "steps": 3, "tokens": 9, "seen_tokens": 27}
    values = {key: value for key, value in json.loads(json.dumps(measured)).items() if key != "routing"}
    text = page.render("results", **facts, **values)
    assert "| math | a | 1 |" in text
    assert "own half" in text and "math's a quarter" in text
    assert page.draw_routing(measured["routing"]).count("<image") >= 2
    assert page.draw_training([3.0, 2.0, 1.0]).startswith("<?xml")
