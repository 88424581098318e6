"""Batched, padded, windowed perplexity equals one sequence at a time."""

import copy
import math

import pytest
import torch

from moe_compress.errors import DataError, EvaluationError
from moe_compress.evaluation.perplexity import measure_perplexities

TEXTS = {
    "short": ["Which gland makes insulin?", "2 + 2", "Name a gas, and then another one that is heavier."],
    "long": ["insulin " * 50, "x", "what does len give? " * 3],
}


def slow_perplexity(model, tokenizer, texts, context):
    """Predict each token from the tokens of its window before it; windows share one token."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - 1, context):
            window = ids[start : start + context + 1]
            with torch.no_grad():
                log_probabilities = model(torch.tensor([window[:-1]])).logits[0].double().log_softmax(-1)
            for at, token in enumerate(window[1:]):
                total -= log_probabilities[at, token].item()
                count += 1
    return math.exp(total / count), count


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 4096])
@pytest.mark.parametrize("context", [7, 2048])
def test_it_equals_one_sequence_at_a_time(model, tokenizer, context, tokens_per_batch):
    measured = measure_perplexities(model, tokenizer, TEXTS, context=context, tokens_per_batch=tokens_per_batch)
    assert list(measured) == ["short", "long"]
    for domain, texts in TEXTS.items():
        expected, count = slow_perplexity(model, tokenizer, texts, min(context, 96))
        assert count == sum(len(tokenizer(text)["input_ids"]) - 1 for text in texts)
        assert measured[domain] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_perplexity_of_guessing(model, tokenizer):
    ignorant = copy.deepcopy(model)
    ignorant.lm_head.weight.data.zero_()
    measured = measure_perplexities(ignorant, tokenizer, TEXTS)
    assert measured["short"] == pytest.approx(len(tokenizer), rel=1e-6)


@pytest.mark.parametrize("texts", [[], ["x"]])
def test_text_without_a_token_to_predict_is_refused(model, tokenizer, texts):
    with pytest.raises(DataError, match="domain 'empty' has no token to predict"):
        measure_perplexities(model, tokenizer, {"empty": texts})


def test_weights_that_are_not_numbers_are_no_result(model, tokenizer):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[3] = float("nan")
    with pytest.raises(EvaluationError, match="domain 'short' is nan"):
        measure_perplexities(broken, tokenizer, TEXTS)
