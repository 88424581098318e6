"""The dense sample: the same tokens however they come, every expert on all of them, on stock models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.collection.routing import LAYOUT, LENGTHS, make_routing, take
from tests.collection.test_resident import EXPERTS, LAYERS, glm4, layout, one_output, qwen2, qwen3, record_layers

from moe_compress.collection.batches import Batch
from moe_compress.collection.dense import DenseSample, choose_sample, lengths_of, positions_of
from moe_compress.collection.sums import RoutingSums, start_sums
from moe_compress.errors import StatisticsError, UnsupportedModelError

HIDDEN = 4


def test_a_sample_has_as_many_tokens_as_asked_for_each_once():
    places = choose_sample(LENGTHS, 10)
    assert places.shape == (len(LENGTHS), max(LENGTHS))
    assert sorted(places[places >= 0].tolist()) == list(range(10))
    for length, row in zip(LENGTHS, places, strict=True):
        assert (row[length:] == -1).all()
    torch.testing.assert_close(choose_sample(LENGTHS, 10), places)


def test_a_sample_of_more_than_there_is_has_every_token_in_order():
    places = choose_sample(LENGTHS, 1000)
    assert places[places >= 0].tolist() == list(range(sum(LENGTHS)))


def test_a_sample_is_drawn_from_everywhere():
    chosen = choose_sample((100,) * 50, 500) >= 0
    # 10 of each 100 on average, so a demonstration or a tenth of the positions without any is next to impossible.
    assert chosen.any(dim=1).all() and chosen.reshape(50, 10, 10).any(dim=2).any(dim=0).all()


def test_positions_count_from_the_start_of_each_demonstration():
    assert positions_of(torch.tensor([4, 4, 4, 0, 7, 7])).tolist() == [0, 1, 2, 0, 0, 1]
    assert positions_of(torch.tensor([], dtype=torch.long)).tolist() == []


def test_lengths_are_the_tokens_that_count():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batches = [Batch(mask, mask, torch.tensor([2, 0])), Batch(mask[:1], mask[:1], torch.tensor([1]))]
    assert lengths_of(batches) == [2, 4, 4]


def double(inputs, ids, weights):
    """Experts that multiply by their number plus one."""
    return inputs * (ids + 1) * weights


def gather(orders, num_tokens=12, forward=double):
    sample = DenseSample(LENGTHS, num_tokens)
    routing = make_routing()
    inputs = torch.randn(sum(LENGTHS), HIDDEN, generator=torch.Generator().manual_seed(5))
    for demonstrations in orders:
        whole = replace(routing, gate_weights_TK=inputs)  # carried along, to be cut the same way
        batch = take(whole, demonstrations)
        sample.add(0, forward, batch.gate_weights_TK, batch)
    chosen = choose_sample(LENGTHS, num_tokens) >= 0
    return sample.finish(0, 3), inputs, [chosen[d, p] for d, n in enumerate(LENGTHS) for p in range(n)]


def test_every_expert_runs_on_the_same_tokens():
    found, inputs, chosen = gather([tuple(range(len(LENGTHS)))])
    expected = sum(row.double() for row, is_chosen in zip(inputs, chosen, strict=True) if is_chosen)
    for expert in range(3):
        torch.testing.assert_close(found["embedding"][expert], expected * (expert + 1), rtol=1e-6, atol=1e-6)
    assert found["embedding_tokens"].tolist() == [12.0] * 3


def test_batches_and_their_order_change_no_bit():
    one, *_ = gather([(0, 1, 2, 3, 4, 5, 6)])
    other, *_ = gather([(6, 2), (5,), (4, 0, 3, 1)])
    assert torch.equal(one["embedding"], other["embedding"])


def test_processes_each_run_their_own_share_of_the_sample():
    whole, *_ = gather([tuple(range(len(LENGTHS)))])
    shares = [gather([own])[0] for own in ((0, 2, 4, 6), (1, 3, 5))]
    assert 0 < shares[0]["embedding_tokens"][0] < 12
    for name, values in whole.items():
        torch.testing.assert_close(shares[0][name] + shares[1][name], values, rtol=1e-6, atol=1e-6)


def test_a_process_may_have_no_token_of_the_sample():
    chosen = (choose_sample(LENGTHS, 2) >= 0).any(dim=1)
    without = tuple(torch.flatten((~chosen).nonzero()).tolist())
    found, *_ = gather([without], 2, forward=lambda inputs, ids, weights: 1 / 0)
    assert not found["embedding"].any() and not found["embedding_tokens"].any()


def test_a_layer_that_was_not_inspected_is_told():
    sums = RoutingSums(LAYOUT, len(LENGTHS), ("embedding",), DenseSample(LENGTHS, 4))
    for row in range(2):
        sums.add(row, make_routing(row))
    with pytest.raises(
        StatisticsError, match="'embedding' of domain 'toy' was asked for, but layer 0 had no batch"
    ):
        sums.as_statistics("toy", {})


def test_experts_that_choose_their_own_tokens_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"not handed the choice of experts, so they cannot all run"):
        gather([(0,)], forward=lambda inputs: inputs)


@pytest.mark.parametrize("build", [qwen3, qwen2, glm4])
@torch.no_grad()
def test_embeddings_of_a_model_are_its_experts_outputs_read_slowly(build):
    torch.manual_seed(0)
    model = build().eval()
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    batch = Batch(torch.randint(0, 64, (3, 9)), mask, torch.arange(3))
    sums = start_sums(layout(), [batch], ("embedding",), embedding_tokens=10)
    keep, chosen = mask.flatten().bool(), (choose_sample((9, 5, 9), 10) >= 0)[mask.bool()]
    for row, store in enumerate(record_layers(model, {"input_ids": batch.input_ids_BS, "attention_mask": mask})):
        logits, weights, ids = store["router"]
        inputs = store["hidden"].reshape(-1, 16)[keep]
        routing = replace(
            make_routing(),
            expert_ids_TK=ids[keep],
            gate_weights_TK=weights[keep],
            output_norms_TK=weights[keep],
            residual_change_T=weights[keep, 0],
            router_logits_TE=logits[keep],
            demonstrations_T=torch.arange(3).repeat_interleave(9)[keep],
        )
        sums.add(row, routing)
        sums.inspect(row, model.model.layers[row].mlp.experts.forward, inputs, routing, None)
        sums.finish()
        experts = model.model.layers[row].mlp.experts
        found = sums.as_statistics("toy", {}) if row == LAYERS - 1 else None
        expected = [sum(one_output(experts, i, token).double() for token in inputs[chosen]) for i in range(EXPERTS)]
        torch.testing.assert_close(
            sums.state([row])[f"{row}.embedding"], torch.stack(expected), rtol=1e-5, atol=1e-6
        )
    assert found["embedding"].shape == (LAYERS, EXPERTS, 16)
    assert (found["embedding_tokens"] == 10).all()


def test_without_a_sample_nothing_is_gathered():
    sums = RoutingSums(LAYOUT, len(LENGTHS))
    sums.inspect(0, double, torch.zeros(sum(LENGTHS), HIDDEN), make_routing(), None)
    sums.finish()
    assert not sums.state()


def test_gathered_embeddings_add_over_shards():
    def shard(demonstrations):
        sums = RoutingSums(LAYOUT, len(LENGTHS), ("embedding",), DenseSample(LENGTHS, 12))
        for row in range(2):
            batch = take(make_routing(row), demonstrations)
            sums.add(row, batch)
            sums.inspect(row, double, batch.router_logits_TE[:, :HIDDEN], batch, None)
            sums.finish()
        return sums.as_statistics("toy", {})

    whole, total = shard(tuple(range(7))), shard((0, 2, 4, 6)) + shard((1, 3, 5))
    np.testing.assert_allclose(total["embedding"], whole["embedding"], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(total["embedding_tokens"], whole["embedding_tokens"])
