"""Digits stand alone, nothing is put in front, and every sequence is of one domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from moe_compress.reference.packing import pack
from moe_compress.reference.tokenizer import train_tokenizer

MODEL = Path(__file__).parents[2] / "data" / "01_raw" / "reference_model"
TEXTS = ["the total of 1234 and 1234 is 2468\n"] * 20 + ["def total(a, b):\n    return a + b\n"] * 20


@pytest.fixture(scope="module", params=["fresh", "committed"])
def tokenizer(request):
    if request.param == "committed":
        return AutoTokenizer.from_pretrained(MODEL)
    return train_tokenizer(TEXTS, vocab_size=300, context_length=64)


def test_every_digit_is_a_token(tokenizer):
    tokens = tokenizer.tokenize("1234 + x12")
    assert [token for token in tokens if any(sign.isdigit() for sign in token)] == list("123412")


def test_nothing_is_added_and_nothing_is_lost(tokenizer):
    text = "  def f(a):\n    return 'é' * 42\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)
    assert tokenizer.bos_token is None


def test_training_is_repeatable():
    first, second = (train_tokenizer(TEXTS, 300, 64).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_sequences_keep_to_one_domain_and_lose_no_token():
    rng = np.random.default_rng(0)
    documents = [[[10 * domain + 10] * int(size) for size in rng.integers(1, 30, 50)] for domain in range(3)]
    packed = pack(documents, length=16, end=2, padding=1, seed=4)
    for row, domain in zip(packed.tokens, packed.domains, strict=True):
        assert set(row.tolist()) <= {1, 2, 10 * domain + 10}
    # Every token of every text, and one end per text.
    assert (packed.tokens >= 10).sum() == sum(len(text) for texts in documents for text in texts)
    assert (packed.tokens == 2).sum() == 150
    assert packed.tokens.shape[1] == 16


def test_packing_is_repeatable_and_mixes_domains():
    documents = [[[domain + 5] * 7 for _ in range(40)] for domain in range(2)]
    first, second = (pack(documents, 16, 2, 1, seed=9) for _ in range(2))
    assert np.array_equal(first.tokens, second.tokens)
    assert 0 < first.domains[:10].mean() < 1
