"""Elimination with re-routing: every step against a literal reading that routes all tokens anew for all experts."""

from __future__ import annotations

from math import exp, inf, sqrt

import numpy as np
import pytest
import torch

from moe_compress.errors import ParameterError
from moe_compress.methods._eliminate import Elimination, eliminate
from moe_compress.methods._routing import Routing
from moe_compress.types import ExpertProducts

TOKENS, EXPERTS, HIDDEN = 12, 8, 5

ROUTINGS = {
    "mixtral": Routing(2),
    "qwen2_moe": Routing(2, normalise=False, scaling=1.5),
    "sigmoid": Routing(2, scoring="sigmoid", normalise=False),
    "sigmoid_bias": Routing(3, scoring="sigmoid", scaling=2.5, bias_E=torch.linspace(-0.3, 0.4, EXPERTS).double()),
    "softmax_bias": Routing(2, bias_E=torch.linspace(0.2, -0.1, EXPERTS).double()),
    "deepseek_v3": Routing(
        2, "sigmoid", True, 2.5, torch.linspace(0.3, -0.2, EXPERTS).double(), num_groups=2, topk_groups=1
    ),
    # With one expert picked, a group's rank hangs on a second one that is not.
    "groups_by_two_for_one": Routing(1, "sigmoid", False, num_groups=2, topk_groups=1),
    "deepseek_v2": Routing(2, normalise=False, num_groups=4, topk_groups=2, group_score="max"),
}


def draw_layer(seed, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    stream = rng.normal(size=(TOKENS, hidden)) * 3
    return stream, rng.normal(size=(TOKENS, EXPERTS)) * 1.5, rng.normal(size=(TOKENS, EXPERTS, hidden))


def sample_of(layer):
    return ExpertProducts.of(*(torch.from_numpy(part) for part in layer))


def route_slowly(logits, kept, routing):
    """One token's experts and gate weights with only the experts of `kept` there, as the family does it."""
    if routing.scoring == "softmax":
        total = sum(exp(logits[e]) for e in kept)
        scores = {e: exp(logits[e]) / total for e in kept}
    else:
        scores = {e: 1 / (1 + exp(-logits[e])) for e in kept}
    values = {e: scores[e] + (0.0 if routing.bias_E is None else float(routing.bias_E[e])) for e in kept}
    size = EXPERTS // routing.num_groups
    if routing.num_groups > 1:
        best = 2 if routing.group_score == "top2" else 1
        worth = {}
        for group in range(routing.num_groups):
            own = sorted((values[e] for e in kept if e // size == group), reverse=True)
            worth[group] = sum(own[:best]) if len(own) >= best else -inf
        used = sorted(worth, key=lambda group: -worth[group])[: routing.topk_groups]
        values = {e: value for e, value in values.items() if e // size in used}
    picked = sorted(values, key=lambda e: -values[e])[: routing.top_k]
    total = sum(scores[e] for e in picked) if routing.normalise else 1.0
    return {e: routing.scaling * scores[e] / total for e in picked}


def error_slowly(layer, kept, routing, error):
    stream, logits, outputs = layer
    errors = []
    for token in range(TOKENS):
        full, left = (
            sum(gate * outputs[token, e] for e, gate in route_slowly(logits[token], experts, routing).items())
            for experts in (range(EXPERTS), kept)
        )
        before, after = stream[token] + full, stream[token] + left
        difference = sum((full - left) ** 2)
        if error == "absolute":
            errors.append(difference)
        elif error == "relative":
            errors.append(difference / sum(before**2))
        else:
            errors.append(1 - sum(before * after) / sqrt(sum(before**2) * sum(after**2)))
    return sum(errors) / TOKENS


def may_go(kept, routing):
    """Experts of the router groups that have the most left."""
    size = EXPERTS // routing.num_groups
    left = [sum(e // size == group for e in kept) for group in range(routing.num_groups)]
    return [e for e in kept if left[e // size] == max(left)]


@pytest.mark.parametrize("error", ["cosine", "absolute", "relative"])
@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_every_step_is_the_literal_one(name, error, seed):
    routing, layer = ROUTINGS[name], draw_layer(seed)
    found = eliminate(sample_of(layer), routing, error)
    kept = list(range(EXPERTS))
    assert len(found.removed) == EXPERTS - routing.fewest
    for gone, harm in zip(found.removed, found.errors, strict=True):
        harms = {e: error_slowly(layer, [k for k in kept if k != e], routing, error) for e in may_go(kept, routing)}
        assert harms[gone] == pytest.approx(min(harms.values()), rel=1e-9, abs=1e-12)
        assert harm == pytest.approx(harms[gone], rel=1e-9, abs=1e-12)
        kept.remove(gone)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "sigmoid_bias"])
def test_permuting_experts_permutes_the_order(name):
    routing, (stream, logits, outputs) = ROUTINGS[name], draw_layer(4)
    order = np.random.default_rng(1).permutation(EXPERTS)
    bias = None if routing.bias_E is None else routing.bias_E[torch.from_numpy(order)]
    permuted = Routing(routing.top_k, routing.scoring, routing.normalise, routing.scaling, bias)
    found = eliminate(sample_of((stream, logits[:, order], outputs[:, order])), permuted)
    assert tuple(order[list(found.removed)]) == eliminate(sample_of((stream, logits, outputs)), routing).removed


def test_an_expert_no_token_depends_on_goes_first_and_costs_nothing():
    stream, logits, outputs = draw_layer(5)
    logits[:, 6] = -50.0
    found = eliminate(sample_of((stream, logits, outputs)), ROUTINGS["mixtral"])
    assert found.removed[0] == 6
    assert found.errors[0] == pytest.approx(0.0, abs=1e-15)


def test_a_score_that_is_nearly_the_whole_sum_does_not_drown_the_rest():
    stream, logits, outputs = draw_layer(6)
    logits[:, 2] = 60.0
    routing = ROUTINGS["qwen2_moe"]
    found = eliminate(sample_of((stream, logits, outputs)), routing, "absolute")
    kept = [e for e in range(EXPERTS) if e not in found.removed[:-1]]
    kept.remove(found.removed[-1])
    slow = error_slowly((stream, logits, outputs), kept, routing, "absolute")
    assert found.errors[-1] == pytest.approx(slow, rel=1e-9)


def test_large_streams_keep_their_small_errors():
    stream, logits, outputs = draw_layer(7)
    found = eliminate(sample_of((stream * 1e5, logits, outputs)), ROUTINGS["mixtral"])
    # With |h| far above |r|, 1 - cos is |d|^2 across h over 2 |h|^2: shrinking as 1 / |h|^2.
    far = eliminate(sample_of((stream * 1e6, logits, outputs)), ROUTINGS["mixtral"])
    assert found.errors[0] > 0
    assert far.errors[0] / found.errors[0] == pytest.approx(1e-2, rel=1e-3)


def test_batches_join():
    layer = draw_layer(8)
    parts = [sample_of(tuple(part[rows] for part in layer)) for rows in (slice(0, 5), slice(5, TOKENS))]
    joined, whole = ExpertProducts.join(parts), sample_of(layer)
    for name in ("logits_NE", "gram_NEE", "stream_dot_NE", "stream_sq_N"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))


def test_equal_experts_go_in_a_drawn_order():
    stream, logits, _ = draw_layer(9)
    same = np.zeros((TOKENS, EXPERTS, HIDDEN))
    sample = sample_of((stream, logits, same))
    first = {eliminate(sample, ROUTINGS["mixtral"], seed=seed).removed[0] for seed in range(30)}
    assert len(first) > 3


def test_ranks_and_curves_by_hand():
    found = Elimination((2, 0), (0.5, 0.75))
    assert found.ranks(4).tolist() == [1.0, 2.0, 0.0, 2.0]
    assert found.curve(4).tolist() == [0.0, 0.5, 0.75, 0.75]
    assert Elimination((), ()).curve(2).tolist() == [0.0, 0.0]


def test_keeping_all_removes_none():
    assert eliminate(sample_of(draw_layer(0)), ROUTINGS["mixtral"], fewest=EXPERTS) == Elimination((), ())


def test_fewer_than_the_router_needs_are_refused():
    with pytest.raises(ParameterError, match="stop at 1 experts, but the router needs 2"):
        eliminate(sample_of(draw_layer(0)), ROUTINGS["mixtral"], fewest=1)


def test_unknown_rules_are_refused():
    with pytest.raises(ParameterError, match="scoring 'tanh'"):
        Routing(2, scoring="tanh")
