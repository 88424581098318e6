"""Where neurons lie, and which belong together, by hand and by trying every order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from moe_compress.checkpoint.alignment import match_neurons
from moe_compress.checkpoint.neurons import NeuronAxis, find_neurons
from moe_compress.errors import PlanError


def find(shapes, is_interleaved=False, are_linear=False, hidden=0):
    return find_neurons(shapes, is_interleaved, are_linear, hidden)


def test_layouts_by_hand():
    assert find({"experts.gate_up_proj": (6, 8), "experts.down_proj": (8, 3)}) == {
        "experts.gate_up_proj": NeuronAxis(0, "halves"),
        "experts.down_proj": NeuronAxis(1),
    }
    gpt_oss = {"gate_up_proj": (8, 6), "gate_up_proj_bias": (6,), "down_proj": (3, 8), "down_proj_bias": (8,)}
    assert find(gpt_oss, is_interleaved=True) == {
        "gate_up_proj": NeuronAxis(1, "pairs"),
        "gate_up_proj_bias": NeuronAxis(0, "pairs"),
        "down_proj": NeuronAxis(0),
        "down_proj_bias": None,
    }
    apart = {"w1.weight": (3, 8), "w3.weight": (3, 8), "w2.weight": (8, 3)}
    assert [find(apart, hidden=8)[name].axis for name in apart] == [0, 0, 1]
    assert [find(apart, hidden=3)[name].axis for name in apart] == [1, 1, 0]
    square = {"w1.weight": (4, 4), "w2.weight": (4, 4)}
    assert [axis.axis for axis in find(square, are_linear=True).values()] == [0, 1]
    assert find({"w1": (3, 8), "w2": (3, 8)})["w2"].axis == 0  # as in dbrx: rows in both


@pytest.mark.parametrize(
    "shapes",
    [
        {"w1": (4, 4), "w2": (4, 4)},
        {"w1": (5, 8), "w2": (8, 3)},
        {"w1": (3, 8)},
        {"w1": (3, 8), "w2": (8, 3), "w4": (7,)},
    ],
)
def test_layouts_that_are_not_understood(shapes):
    with pytest.raises(PlanError, match=r"where the neurons lie in .* leave align_neurons false"):
        find(shapes, hidden=8)


@pytest.mark.parametrize("kind", ["plain", "halves", "pairs"])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_order_moves_whole_neurons(kind, axis):
    values = np.arange(6 * 6, dtype=np.float32).reshape(6, 6)
    where = NeuronAxis(axis, kind)
    order = np.array([2, 0, 1] if kind != "plain" else [2, 0, 1, 5, 3, 4])
    moved = values.take(where.expand(order), axis=axis)
    assert np.array_equal(where.by_neuron(moved), where.by_neuron(values)[order])


def test_the_assignment_is_the_best_of_all_orders():
    rng = np.random.default_rng(0)
    ours, theirs = ([rng.normal(size=(5, width)).astype(np.float32) for width in (4, 7)] for _ in range(2))

    def worth(order):
        return sum((a * b[list(order)]).sum() for a, b in zip(ours, theirs, strict=True))

    assert tuple(match_neurons(ours, theirs)) == max(permutations(range(5)), key=worth)
