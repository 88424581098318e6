"""Divergence from the base, batched and padded, equals one text at a time from plain log-probabilities."""

import copy

import pytest
import torch

from moe_compress.errors import DataError, EvaluationError, ResourceError
from moe_compress.evaluation import divergence
from moe_compress.evaluation.divergence import BasePredictions
from moe_compress.evaluation.masked import mask_experts

TEXTS = {
    "short": ["Which gland makes insulin?", "2 + 2", "Name a gas, and then another one that is heavier."],
    "long": ["insulin " * 50, "x", "what does len give? " * 3],
}


def slow_divergence(base, candidate, tokenizer, texts, context):
    """Read each window by itself; sum p (log p - log q) over the vocabulary, token by token."""
    kl, agreed, count = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - 1, context):
            window = torch.tensor([ids[start : start + context + 1][:-1]])
            with torch.no_grad():
                before = base(window).logits[0].double().log_softmax(-1)
                after = candidate(window).logits[0].double().log_softmax(-1)
            for p, q in zip(before, after, strict=True):
                kl += (p.exp() * (p - q)).sum().item()
                agreed += int(p.argmax() == q.argmax())
                count += 1
    return kl / count, agreed / count, count


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
@pytest.mark.parametrize(("context", "tokens_per_batch"), [(7, 60), (2048, 1), (2048, 4096)])
def test_it_equals_one_text_at_a_time(
    make_model, model, tokenizer, tmp_path, monkeypatch, context, tokens_per_batch, memory_bytes
):
    monkeypatch.setattr(divergence, "_CHUNK", 5 * len(tokenizer))  # several chunks a batch
    other = make_model(seed=1)
    base = BasePredictions(
        model,
        tokenizer,
        TEXTS,
        context=context,
        tokens_per_batch=tokens_per_batch,
        memory_bytes=memory_bytes,
        folder=tmp_path,
    )
    assert not list(tmp_path.iterdir())  # a mapped file has lost its name
    found = base.compare(other)
    assert list(found) == ["short", "long"]
    for domain, texts in TEXTS.items():
        kl, agreement, count = slow_divergence(model, other, tokenizer, texts, min(context, 96))
        assert kl > 0.1
        assert found[domain].kl == pytest.approx(kl, rel=1e-3)
        assert (found[domain].agreement, found[domain].num_tokens) == (pytest.approx(agreement), count)


def test_the_base_is_no_distance_from_itself_and_a_mask_is(model, tokenizer):
    base = BasePredictions(model, tokenizer, TEXTS)
    for found in base.compare(model).values():
        assert abs(found.kl) < 1e-5 and found.agreement == 1
    with mask_experts(model, [range(4)] * 2):
        masked = base.compare(model)
    assert all(found.kl > 1e-3 and found.agreement < 1 for found in masked.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused_with_domain_and_text(model, tokenizer, value):
    # The embedding of a token that only the third text has.
    texts = {"fine": ["2 + 2"], "broken": ["Name a gas.", "2 + 2", "Which gland makes insulin?"]}
    broken = copy.deepcopy(model)
    (token,) = set(tokenizer("insulin")["input_ids"]) - {
        token for text in texts["broken"][:2] + texts["fine"] for token in tokenizer(text)["input_ids"]
    }.union(tokenizer("insulin")["input_ids"][1:])
    broken.model.embed_tokens.weight.data[token] = value
    with pytest.raises(
        EvaluationError, match="the base model predicts NaN or infinity on text 3 of domain 'broken'"
    ):
        BasePredictions(broken, tokenizer, texts)
    base = BasePredictions(model, tokenizer, texts)
    with pytest.raises(
        EvaluationError, match="the candidate predicts NaN or infinity on text 3 of domain 'broken'"
    ):
        base.compare(broken)


@pytest.mark.parametrize("texts", [[], ["x"]])
def test_text_without_a_token_to_predict_is_refused(model, tokenizer, texts):
    with pytest.raises(DataError, match="domain 'empty' has no token to predict"):
        BasePredictions(model, tokenizer, {"empty": texts})


def test_a_disk_without_room_is_refused(model, tokenizer, tmp_path, monkeypatch):
    usage = divergence.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(divergence.shutil, "disk_usage", lambda place: usage._replace(free=10))
    with pytest.raises(ResourceError, match=r"has 10 free; lower evaluate\.heldout_limit"):
        BasePredictions(model, tokenizer, TEXTS, memory_bytes=0, folder=tmp_path)
