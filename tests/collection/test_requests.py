"""What is asked for by name, and what it costs."""

from __future__ import annotations

import pytest
import torch
from tests.collection.routing import EXPERTS, LAYOUT, LENGTHS, make_routing

from moe_compress.collection.dense import DenseSample
from moe_compress.collection.requests import ALWAYS, ON_REQUEST, CollectedShape, cost_of, resolve_requests
from moe_compress.collection.sums import RoutingSums
from moe_compress.errors import ParameterError
from moe_compress.types import MoELayout

HIDDEN = 4
SHAPE = CollectedShape(
    LAYOUT, HIDDEN, 3 * HIDDEN * 8, sum(LENGTHS), embedding_tokens=10, num_demonstrations=len(LENGTHS)
)


def test_what_every_collection_has_is_no_request():
    assert resolve_requests(ALWAYS) == ()


def test_requests_are_the_union_by_what_brings_them():
    assert resolve_requests(("embedding_tokens", "count"), ("max_norm", "embedding")) == ("embedding", "max_norm")


def test_a_statistic_that_cannot_be_collected_is_answered_with_the_near_miss():
    with pytest.raises(
        ParameterError, match=r"no statistic 'embeding' can be collected \(did you mean 'embedding'"
    ):
        resolve_requests(("embeding",))


class Experts(torch.nn.Module):
    """Experts that give back what they read."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.ones(EXPERTS, HIDDEN, 8))

    def forward(self, hidden, ids, weights):
        return hidden


class AlreadyReduced:
    """Layers' samples of a method that makes zeros of them."""

    def __init__(self):
        self.rows = ()

    def add(self, row, *_):
        self.rows = (row,)

    def finish(self, row, num_experts):
        names = (name for name, request in ON_REQUEST.items() if request == "elimination")
        return {name: torch.zeros(num_experts, dtype=torch.float64) for name in names}


@pytest.mark.parametrize("request_name", sorted(set(ON_REQUEST.values())))
def test_a_cost_is_what_the_file_then_holds(request_name):
    sample = DenseSample(LENGTHS, 10) if request_name == "embedding" else None
    reduced = AlreadyReduced() if request_name == "elimination" else None
    sums = RoutingSums(LAYOUT, len(LENGTHS), (request_name,), sample, reduced)
    for row in range(2):
        batch = make_routing(row)
        sums.add(row, batch)
        sums.inspect(row, Experts().forward, torch.zeros(sum(LENGTHS), HIDDEN), batch, None)
        sums.finish()
    statistics = sums.as_statistics("toy", {})
    extra = {**statistics.sums, **statistics.maxima}.keys() - set(ALWAYS)
    assert cost_of(request_name, SHAPE).file_bytes == sum(statistics[name].nbytes for name in extra)
    assert extra == {name for name, brings in ON_REQUEST.items() if brings == request_name}


def test_costs_by_hand():
    # 10 sampled tokens through 2 layers of 6 experts with 96 parameters, two operations a parameter.
    assert cost_of("embedding", SHAPE).flops == 10 * 12 * 96 * 2
    # 37 tokens, 36 products a layer, two operations each.
    assert cost_of("logit_gram", SHAPE).flops == 37 * 72 * 2
    # 96 parameters of each of 6 experts with those of each: 36 products of 96 terms in 2 layers.
    assert cost_of("weight_gram", SHAPE).flops == 2 * 96 * 72
    # 7 means through 12 experts of 96 parameters, then products of 12 vectors of 7 means of 4 numbers.
    assert cost_of("pooled_gram", SHAPE).flops == 2 * 7 * 12 * (96 + 4 * 12)
    # The same experts on the sample; 10 tokens' 36 products of 4 terms in 2 layers; 2 * 2 picks anew, of 6 experts.
    running, multiplying, routing = 10 * 12 * 96 * 2, 10 * 72 * 4 * 2, 8 * 10 * 4 * 6 * 12
    assert cost_of("elimination", SHAPE).flops == running + multiplying + routing
    assert cost_of("max_norm", SHAPE).device_bytes == 8 * EXPERTS


def test_embeddings_of_the_largest_models_fit_when_streamed():
    deepseek_v3 = CollectedShape(MoELayout(tuple(range(3, 61)), (256,) * 58, 8), 7168, 3 * 7168 * 2048, 10**6, 2048)
    assert cost_of("embedding", deepseek_v3).device_bytes < 1e9
    assert cost_of("embedding", deepseek_v3).file_bytes == 58 * 256 * 7169 * 8
    # 0.5 GB of products twice while they are joined, 1 GB of outputs thrice, 0.2 GB of what entered.
    assert cost_of("elimination", deepseek_v3).device_bytes < 5e9
    assert cost_of("elimination", deepseek_v3).file_bytes == 58 * 256 * 2 * 8
