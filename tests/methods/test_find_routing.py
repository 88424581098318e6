"""Rules found from what a router did: those it was made with, or none."""

from __future__ import annotations

import pytest
import torch

from moe_compress.errors import UnsupportedModelError
from moe_compress.methods._find_routing import find_routing
from moe_compress.methods._routing import Routing
from moe_compress.types import ExpertProducts, LayerSample, MoELayout, RouterTrial

EXPERTS, TOKENS = 8, 60
BIAS = torch.linspace(-0.4, 0.5, EXPERTS)
RULES = [
    Routing(2),
    Routing(3, normalise=False, scaling=1.5),
    Routing(2, "sigmoid", False),
    Routing(2, "sigmoid", True, 2.446, BIAS.double()),
    Routing(2, "sigmoid", True, 2.5, BIAS.double(), 2, 1),
    Routing(2, "softmax", False, 16.0, None, 4, 2, "max"),
]


def make_sample(rules, change=lambda gates: gates):
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(0)) * 2
    scores, trials = rules.scores(logits), []
    for kept in (range(EXPERTS), (0, 1, 3, 4, 5, 7), (1, 2, 5, 6)):
        there = torch.zeros(EXPERTS, dtype=torch.bool)
        there[list(kept)] = True
        ids, gates = rules.gates(scores, there.expand_as(scores))
        dense = torch.zeros_like(scores).scatter_(1, ids, gates)
        trials.append(RouterTrial(logits, there, change(dense)))
    layout = MoELayout((0,), (EXPERTS,), rules.top_k, rules.num_groups, rules.topk_groups)
    none = torch.zeros(0)
    products = ExpertProducts(none, none, none, none)
    return LayerSample("toy", "layers.0.experts", layout, products, tuple(trials), (BIAS,))


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rules_are_found_again(rules, dtype):
    found = find_routing(make_sample(rules, lambda gates: gates.to(dtype).float()))
    for name in ("top_k", "scoring", "normalise", "num_groups", "topk_groups", "group_score"):
        assert getattr(found, name) == getattr(rules, name)
    assert found.scaling == pytest.approx(rules.scaling, rel=0.002)
    assert (found.bias_E is None) == (rules.bias_E is None)


def test_a_tie_or_two_do_not_matter_but_more_do():
    def break_rows(count):
        def change(gates):
            gates = gates.float().clone()
            gates[:count] = gates[:count].roll(1, dims=1)
            return gates

        return change

    two_in_a_hundred = make_sample(Routing(2), break_rows(2))
    with pytest.raises(UnsupportedModelError, match="'toy' routes by rules that are not known"):
        find_routing(two_in_a_hundred)
    assert find_routing(make_sample(Routing(2), break_rows(0))) == Routing(2)


def test_rules_that_hold_only_with_all_experts_there_are_refused():
    sample = make_sample(Routing(2))
    whole, *hidden = sample.trials
    strange = [RouterTrial(trial.logits_NE, trial.there_E, trial.gates_NE.flip(0)) for trial in hidden]
    broken = LayerSample(sample.family, sample.name, sample.layout, sample.products, (whole, *strange), ())
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.experts.*other method than reconstruct"):
        find_routing(broken)
