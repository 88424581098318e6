"""Routing observed in batches equals each text by itself; drift and balance are worked by hand."""

import numpy as np
import pytest
import torch

from moe_compress.errors import DataError, PlanError, UnsupportedModelError
from moe_compress.evaluation.masked import find_owners, mask_experts
from moe_compress.evaluation.routing import LayerRouting, measure_balance, measure_drift, observe_routing

TEXTS = ["Which gland makes insulin?", "insulin " * 12, "x", "2 + 2"]
KEPT = ((0, 1, 4, 6), (2, 3, 5, 7))


def slow_routing(model, tokenizer, texts):
    """Read each text alone and ask the router itself, token by token."""
    owners = find_owners(model)
    sums = [np.zeros((3, 8)) for _ in owners]
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:-1]])
        if ids.shape[1] == 0:
            continue
        seen = {}
        handles = [
            owner.gate.register_forward_hook(lambda gate, read, out, row=row, seen=seen: seen.__setitem__(row, out))
            for row, owner in enumerate(owners)
        ]
        with torch.no_grad():
            model(ids)
        for handle in handles:
            handle.remove()
        for row, (_, weights, picked) in seen.items():
            for token in range(len(picked)):
                for place in range(picked.shape[1]):
                    expert, weight = int(picked[token, place]), float(weights[token, place])
                    sums[row][0, expert] += 1
                    sums[row][1, expert] += weight == float(weights[token].max())
                    sums[row][2, expert] += weight
    return sums


@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_it_equals_one_text_at_a_time(model, tokenizer, tokens_per_batch):
    seen = observe_routing(model, tokenizer, TEXTS, tokens_per_batch=tokens_per_batch)
    for layer, expected in zip(seen, slow_routing(model, tokenizer, TEXTS), strict=True):
        found = np.stack([layer.picked, layer.first, layer.weight])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        tokens = sum(len(tokenizer(text)["input_ids"]) - 1 for text in TEXTS)
        assert layer.picked.sum() == 2 * tokens and layer.first.sum() == tokens


def test_a_masked_model_sends_nothing_to_dropped_experts(model, tokenizer):
    with mask_experts(model, KEPT):
        seen = observe_routing(model, tokenizer, TEXTS)
    assert all(drift.first == drift.picked == drift.weight == 0 for drift in measure_drift(seen, KEPT))
    assert all(sum(balance.shares) == pytest.approx(1) for balance in measure_balance(seen, KEPT))
    before = measure_drift(observe_routing(model, tokenizer, TEXTS), KEPT)
    assert all(0 < drift.first < 1 for drift in before)


def test_drift_and_balance_by_hand():
    layer = LayerRouting(np.array([6.0, 2, 0, 4]), np.array([5.0, 0, 0, 1]), np.array([4.0, 0.5, 0, 1.5]))
    (drift,) = measure_drift([layer], [(0, 1)])
    # Dropped are experts 2 and 3: 1 of 6 first choices, 4 of 12 pairs, 1.5 of 6 in weight.
    assert (drift.first, drift.picked, drift.weight) == pytest.approx((1 / 6, 1 / 3, 1 / 4))
    (balance,) = measure_balance([layer], [(0, 1, 3)])
    # Shares 6, 2 and 4 of 12: mean 1/3, standard deviation sqrt((1/36 + 1/36 + 0) / 3).
    assert balance.shares == pytest.approx((1 / 2, 1 / 6, 1 / 3))
    assert (balance.variation, balance.peak) == pytest.approx(((1 / 54) ** 0.5 * 3, 1.5))


@pytest.mark.parametrize("measure", [measure_drift, measure_balance])
def test_plans_of_another_model_are_refused(measure):
    with pytest.raises(PlanError, match="covers 2 layers, routing was observed in 1"):
        measure([LayerRouting(np.ones(8), np.ones(8), np.ones(8))], KEPT)


def test_text_without_a_token_is_refused(model, tokenizer):
    with pytest.raises(DataError, match="no token to predict"):
        observe_routing(model, tokenizer, ["x"])


def test_experts_that_are_not_handed_their_routing_are_refused(model, tokenizer, monkeypatch):
    for owner in find_owners(model):
        stock = owner.forward
        monkeypatch.setattr(owner, "forward", lambda hidden, owner=owner, stock=stock: owner.experts(hidden))
    with pytest.raises(UnsupportedModelError, match="'qwen3_moe' are not handed ids and gate weights"):
        observe_routing(model, tokenizer, TEXTS)
