"""Experts compared by their weights: each product read slowly, on stock models."""

from __future__ import annotations

import pytest
import torch
from tests.collection.routing import LAYOUT, LENGTHS, make_routing
from tests.collection.test_resident import EXPERTS, glm4, qwen3

from moe_compress.collection import weight_gram
from moe_compress.collection.sums import RoutingSums
from moe_compress.errors import UnsupportedModelError


@torch.no_grad()
@pytest.mark.parametrize("columns", [7, 1 << 16])
@pytest.mark.parametrize("build", [qwen3, glm4])
def test_every_pair_of_experts_read_slowly(build, columns, monkeypatch):
    monkeypatch.setattr(weight_gram, "_COLUMNS", columns)
    torch.manual_seed(0)
    experts = build().model.layers[0].mlp.experts
    found = weight_gram.multiply_weights(experts.forward, EXPERTS)
    for i in range(EXPERTS):
        for j in range(EXPERTS):
            one, other = (
                torch.cat([experts.gate_up_proj[e].flatten(), experts.down_proj[e].flatten()]) for e in (i, j)
            )
            assert float(found[i, j]) == pytest.approx(float(one.double() @ other.double()), rel=1e-4, abs=1e-5)


def test_experts_without_stacked_weights_are_refused():
    with pytest.raises(UnsupportedModelError, match="weights of 4 experts are not stacked in one module"):
        weight_gram.multiply_weights(lambda hidden, ids, weights: hidden, 4)


def test_weights_are_multiplied_once_however_many_batches_come():
    torch.manual_seed(0)
    experts = qwen3().model.layers[0].mlp.experts
    sums = RoutingSums(LAYOUT, len(LENGTHS), ("weight_gram",))
    batch = make_routing()
    for _ in range(2):
        sums.add(0, batch)
        sums.inspect(0, experts.forward, torch.zeros(sum(LENGTHS), 16), batch, None)
    assert torch.equal(sums.state()["0.weight_gram"], weight_gram.multiply_weights(experts.forward, EXPERTS))
