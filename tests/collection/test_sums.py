"""Sums per part of the demonstrations: read slowly, cut into any batches, saved, restored and merged."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
import torch
from tests.collection.routing import EXPERTS, LAYOUT, LENGTHS, TOP_K, make_routing, take

from moe_compress.collection.batches import Batch
from moe_compress.collection.requests import ALWAYS, ON_REQUEST
from moe_compress.collection.sums import RoutingSums, start_sums
from moe_compress.errors import StatisticsError
from moe_compress.types import MoELayout, assign_parts

NUM = len(LENGTHS)
EVERY = tuple(range(NUM))
PAIRS_AND_MAXIMA = ("coactivation", "logit_gram", "max_gate_norm", "max_norm")


def add_all(batches_of_demonstrations, requests=()):
    sums = RoutingSums(LAYOUT, NUM, requests)
    for row in range(2):
        for demonstrations in batches_of_demonstrations:
            sums.add(row, take(make_routing(row), demonstrations))
    return sums


def sum_slowly(batch, demonstrations):
    """The sums over some demonstrations' tokens, one token and one expert at a time."""
    sums = {name: np.zeros(EXPERTS) for name in ALWAYS}
    for token in range(len(batch.demonstrations_T)):
        if int(batch.demonstrations_T[token]) not in demonstrations:
            continue
        exponentials = [exp(float(logit)) for logit in batch.router_logits_TE[token]]
        for expert in range(EXPERTS):
            sums["router_probability"][expert] += exponentials[expert] / sum(exponentials)
        for k in range(TOP_K):
            expert, g = int(batch.expert_ids_TK[token, k]), float(batch.gate_weights_TK[token, k])
            n, s = float(batch.output_norms_TK[token, k]), max(0.0, float(batch.residual_change_T[token]))
            values = {"count": 1, "gate": g, "norm": n, "gate_norm": g * n, "gate_norm_change": g * n * s}
            for name, value in {**values, "gate_change": g * s}.items():
                sums[name][expert] += value
    return sums


def assert_same_bits(one, other):
    for kind in ("sums", "maxima"):
        assert getattr(one, kind).keys() == getattr(other, kind).keys()
        for name, values in getattr(one, kind).items():
            np.testing.assert_array_equal(values, getattr(other, kind)[name], err_msg=name)
    for name, values in one.parts.sums.items():
        np.testing.assert_array_equal(values, other.parts.sums[name], err_msg=name)
    assert (one.parts.num_tokens, one.parts.ends) == (other.parts.num_tokens, other.parts.ends)


def test_each_part_is_the_equations_over_its_own_demonstrations():
    statistics = add_all([(0, 1, 2), (3, 4), (5, 6)]).as_statistics("toy", {})
    part_of = assign_parts(NUM)
    for part in range(len(statistics.parts.num_tokens)):
        demonstrations = set(np.flatnonzero(part_of == part))
        assert statistics.parts.num_demonstrations[part] == len(demonstrations)
        assert statistics.parts.num_tokens[part] == sum(LENGTHS[number] for number in demonstrations)
        for row in range(2):
            for name, expected in sum_slowly(make_routing(row), demonstrations).items():
                np.testing.assert_allclose(statistics.parts.sums[name][part, row], expected, rtol=1e-6, atol=1e-12)
    for row in range(2):
        for name, expected in sum_slowly(make_routing(row), set(EVERY)).items():
            np.testing.assert_allclose(statistics[name][row], expected, rtol=1e-6)


def test_how_tokens_are_cut_into_batches_changes_no_bit():
    whole = add_all([EVERY]).as_statistics("toy", {})
    assert_same_bits(whole, add_all([(0,), (1, 2), (3, 4, 5, 6)]).as_statistics("toy", {}))


def test_another_order_of_demonstrations_puts_them_in_the_same_parts():
    given, other = (add_all([order]).as_statistics("toy", {}) for order in (EVERY, EVERY[::-1]))
    np.testing.assert_array_equal(given.parts.sums["count"], other.parts.sums["count"])
    for name in ALWAYS:
        np.testing.assert_allclose(given.parts.sums[name], other.parts.sums[name], rtol=1e-12)


def test_restored_in_the_middle_it_ends_with_the_same_bits():
    requests = PAIRS_AND_MAXIMA
    whole = add_all([(0, 1), (2, 3, 4), (5, 6)], requests)
    first = RoutingSums(LAYOUT, NUM, requests)
    first.add(0, take(make_routing(0), (0, 1)))
    saved = first.state()
    first.add(0, take(make_routing(0), (2, 3, 4)))  # must not reach what was saved
    again = RoutingSums(LAYOUT, NUM, requests)
    again.restore(saved)
    for row in range(2):
        for demonstrations in [(0, 1), (2, 3, 4), (5, 6)][1 - row :]:
            again.add(row, take(make_routing(row), demonstrations))
    assert_same_bits(whole.as_statistics("toy", {}), again.as_statistics("toy", {}))


def test_state_of_one_layer_is_enough_for_that_layer():
    sums = add_all([EVERY])
    assert {key.partition(".")[0] for key in sums.state([1])} == {"1"}
    again = RoutingSums(LAYOUT, NUM)
    again.restore(sums.state([0]))
    assert again.num_tokens == [sum(LENGTHS), 0]
    again.restore(sums.state([1]))
    assert_same_bits(sums.as_statistics("toy", {}), again.as_statistics("toy", {}))


def test_processes_that_share_the_demonstrations_merge_to_one():
    whole = add_all([EVERY], PAIRS_AND_MAXIMA).as_statistics("toy", {})
    parts = [add_all([own], PAIRS_AND_MAXIMA) for own in ((0, 3, 6), (1, 4), (2, 5))]
    as_shards = sum((part.as_statistics("toy", {}) for part in parts[1:]), parts[0].as_statistics("toy", {}))
    for part in parts[1:]:
        parts[0].merge(part.state())
    for merged in (parts[0].as_statistics("toy", {}), as_shards):
        assert merged.num_tokens == whole.num_tokens
        assert merged.parts.num_demonstrations == whole.parts.num_demonstrations
        for name in ("count", "coactivation", *merged.maxima):
            np.testing.assert_array_equal(merged[name], whole[name])
        for name in merged.sums:
            np.testing.assert_allclose(merged[name], whole[name], rtol=1e-9)


def test_a_process_without_batches_has_the_same_names_to_reduce():
    idle, busy = RoutingSums(LAYOUT, NUM, PAIRS_AND_MAXIMA), add_all([EVERY], PAIRS_AND_MAXIMA)
    assert idle.state([0, 1]).keys() == busy.state([0, 1]).keys()
    idle.merge(busy.state())
    assert_same_bits(busy.as_statistics("toy", {}), idle.as_statistics("toy", {}))


def test_pairs_and_maxima_read_slowly():
    statistics = add_all([(0, 1, 2), (3, 4, 5, 6)], PAIRS_AND_MAXIMA).as_statistics("toy", {})
    for row in range(2):
        batch = make_routing(row)
        gram, together = np.zeros((EXPERTS, EXPERTS)), np.zeros((EXPERTS, EXPERTS))
        largest = {"max_norm": np.zeros(EXPERTS), "max_gate_norm": np.zeros(EXPERTS)}
        for token in range(sum(LENGTHS)):
            logits, ids = batch.router_logits_TE[token].tolist(), batch.expert_ids_TK[token].tolist()
            for i in range(EXPERTS):
                for j in range(EXPERTS):
                    gram[i, j] += logits[i] * logits[j]
                    together[i, j] += i in ids and j in ids
            for k, expert in enumerate(ids):
                norm, gate = float(batch.output_norms_TK[token, k]), float(batch.gate_weights_TK[token, k])
                largest["max_norm"][expert] = max(largest["max_norm"][expert], norm)
                largest["max_gate_norm"][expert] = max(largest["max_gate_norm"][expert], gate * norm)
        np.testing.assert_allclose(statistics["logit_gram"][row], gram, rtol=1e-9)
        np.testing.assert_array_equal(statistics["coactivation"][row], together)
        np.testing.assert_array_equal(np.diag(together), statistics["count"][row])
        for name, expected in largest.items():
            np.testing.assert_allclose(statistics.maxima[name][row], expected, rtol=1e-12)


def test_nothing_is_kept_that_was_not_asked_for():
    statistics = add_all([EVERY]).as_statistics("toy", {})
    assert set(statistics.sums) == set(ALWAYS) and not statistics.maxima
    assert not {name for key in add_all([EVERY]).state() for name in ON_REQUEST if name in key}


def test_layers_of_different_width_are_padded():
    layout = MoELayout((0, 1), (EXPERTS, 4), TOP_K)
    sums = RoutingSums(layout, NUM, PAIRS_AND_MAXIMA)
    sums.add(0, make_routing(0))
    sums.add(1, make_routing(1, experts=4))
    statistics = sums.as_statistics("toy", {})
    assert statistics["logit_gram"].shape == statistics["coactivation"].shape == (2, EXPERTS, EXPERTS)
    assert statistics["max_norm"].shape == (2, EXPERTS)
    assert not statistics["logit_gram"][1, 4:].any() and not statistics["logit_gram"][1, :, 4:].any()
    assert statistics["logit_gram"][1, :4, :4].all()


def test_a_process_without_any_batch_adds_nothing():
    busy, idle = (
        add_all([EVERY], PAIRS_AND_MAXIMA).as_statistics("toy", {}),
        RoutingSums(LAYOUT, NUM, PAIRS_AND_MAXIMA),
    )
    assert_same_bits(busy + idle.as_statistics("toy", {}), busy)


def test_a_layer_that_missed_tokens_is_refused():
    sums = RoutingSums(LAYOUT, NUM)
    sums.add(0, make_routing(0))
    sums.add(1, take(make_routing(1), (0, 1)))
    with pytest.raises(StatisticsError, match="layer 3 counted"):
        sums.as_statistics("toy", {})


def test_batches_tell_how_many_demonstrations_there_are():
    masks = torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.tensor([[1, 1]])
    batches = [
        Batch(torch.zeros_like(mask), mask, torch.tensor(rows))
        for mask, rows in zip(masks, ([2, 0], [1]), strict=True)
    ]
    sums = start_sums(LAYOUT, batches)
    assert sums.num_demonstrations == 3 and sums.sample is None
    assert start_sums(LAYOUT, batches, ("embedding",), 4).sample.tokens.num_tokens == 4
    assert start_sums(LAYOUT, batches, ("embedding",), 100).sample.tokens.num_tokens == 6
