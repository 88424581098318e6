"""Inner products of experts' outputs on pooled inputs, against stacking the outputs themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.collection.routing import EXPERTS, LAYOUT, LENGTHS, make_routing, take

from moe_compress.collection import pooled
from moe_compress.collection.sums import RoutingSums
from moe_compress.errors import StatisticsError, UnsupportedModelError
from moe_compress.types import MoELayout

HIDDEN = 4


def make_forward(row):
    turns = torch.randn(EXPERTS, HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(row))

    def forward(inputs, ids, weights):
        return torch.tanh(torch.einsum("nd,ndf->nf", inputs, turns[ids[:, 0]]) + ids) * weights

    return forward


def draw_inputs(row):
    return torch.randn(sum(LENGTHS), HIDDEN, generator=torch.Generator().manual_seed(10 + row))


def collect(orders, layout=LAYOUT):
    sums = RoutingSums(layout, len(LENGTHS), ("pooled_gram",))
    for row in range(2):
        for demonstrations in orders:
            batch = take(make_routing(row), demonstrations)
            starts = np.cumsum((0, *LENGTHS))
            inputs = torch.cat([draw_inputs(row)[starts[d] : starts[d + 1]] for d in demonstrations])
            sums.add(row, batch)
            sums.inspect(row, make_forward(row), inputs, batch, None)
        sums.finish()
    return sums.as_statistics("toy", {})


@pytest.fixture
def pairs(monkeypatch):
    """Batches of three demonstrations: of seven, the last has one."""
    monkeypatch.setattr(pooled, "TOGETHER", 3)


def test_products_are_those_of_the_outputs_one_after_the_other(pairs):
    gram = collect([(0, 1, 2, 3, 4, 5, 6)])["pooled_gram"]
    assert gram.shape == (2, EXPERTS, 3, 2, EXPERTS)
    outputs = {}
    for row in range(2):
        means = [part.mean(dim=0) for part in draw_inputs(row).split(LENGTHS)]
        for expert in range(EXPERTS):
            ids, ones = torch.tensor([[expert]]), torch.ones(1, 1)
            outputs[row, expert] = [make_forward(row)(mean[None], ids, ones)[0].double() for mean in means]
    for batch, samples in enumerate(((0, 1, 2), (3, 4, 5), (6,))):
        for (row, expert), ours in outputs.items():
            for (other_row, other), theirs in outputs.items():
                expected = sum(float(ours[s] @ theirs[s]) for s in samples)
                assert gram[row, expert, batch, other_row, other] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_batches_of_the_forward_pass_change_nothing(pairs):
    one, other = collect([(0, 1, 2, 3, 4, 5, 6)]), collect([(6, 2), (5,), (4, 0, 3, 1)])
    np.testing.assert_array_equal(one["pooled_gram"], other["pooled_gram"])


def test_shards_add(pairs):
    whole, total = collect([tuple(range(7))]), collect([(0, 2, 4, 6)]) + collect([(1, 3, 5)])
    np.testing.assert_allclose(total["pooled_gram"], whole["pooled_gram"], rtol=1e-12, atol=1e-12)


def test_narrower_layers_are_padded():
    layout = MoELayout((0, 3), (EXPERTS, EXPERTS), 2)
    outputs = [torch.ones(EXPERTS, 2, HIDDEN), torch.ones(3, 2, HIDDEN)]
    first, second = pooled.multiply_outputs(outputs, max(layout.num_experts))
    assert first.shape == (EXPERTS, 1, 2, EXPERTS) and second.shape == (3, 1, 2, EXPERTS)
    assert first[:, 0, 1].tolist() == [[8.0] * 3 + [0.0] * 3] * EXPERTS


def test_a_layer_without_a_batch_is_told():
    sums = RoutingSums(LAYOUT, len(LENGTHS), ("pooled_gram",))
    for row in range(2):
        sums.add(row, make_routing(row))
    sums.inspect(0, make_forward(0), draw_inputs(0), make_routing(0), None)
    sums.finish()
    with pytest.raises(StatisticsError, match="'pooled_gram' of domain 'toy' was asked for, but layer 0 had"):
        sums.as_statistics("toy", {})


def test_experts_that_choose_their_own_tokens_are_refused():
    sums = RoutingSums(LAYOUT, len(LENGTHS), ("pooled_gram",))
    sums.add(0, make_routing(0))
    with pytest.raises(UnsupportedModelError, match="not handed the choice of experts"):
        sums.inspect(0, lambda inputs: inputs, draw_inputs(0), make_routing(0), None)
