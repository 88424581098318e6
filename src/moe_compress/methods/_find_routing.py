"""Which rules a layer's router follows: those that give what it did, whole and with experts hidden from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from moe_compress.errors import UnsupportedModelError
from moe_compress.methods._routing import Routing
from moe_compress.types import LayerSample, MoELayout, RouterTrial

_AGREE = 0.99
"""Share of tokens whose gate weights must be the router's; of equal values at the edge any may be picked."""

_TOLERANCE = 0.01
"""How far a gate weight may be off, as a share of its token's largest: those computed in bfloat16 are by 0.004."""


def find_routing(sample: LayerSample) -> Routing:
    """Return the rules of a layer's router.

    Nothing is known of families here: of all rules that `Routing` can say, the first is taken that repeats the
    gate weights of every trial.

    Raises:
        UnsupportedModelError: if none does.
    """
    for rules in _possible_rules(sample.layout, sample.biases):
        scaling = _scaling(rules, sample.trials[0])
        found = replace(rules, scaling=scaling)
        if all(_repeats(found, trial) for trial in sample.trials):
            return found
    raise UnsupportedModelError(
        f"'{sample.family}' routes by rules that are not known here ({sample.name}), so what its router would do "
        "without some of its experts cannot be told; choose another method than reconstruct (select.method)"
    )


def _possible_rules(layout: MoELayout, biases: tuple[torch.Tensor, ...]) -> Iterator[Routing]:
    # A bias of zeros changes nothing, and then the rules without it are as right and cheaper to follow.
    for bias_E in (None, *(bias.double() for bias in biases)):
        for scoring in ("softmax", "sigmoid"):
            for normalise in (True, False):
                for group_score in ("top2", "max") if layout.num_groups > 1 else ("top2",):
                    yield Routing(
                        layout.top_k,
                        scoring,
                        normalise,
                        1.0,
                        bias_E,
                        layout.num_groups,
                        layout.topk_groups,
                        group_score,
                    )


def _scaling(rules: Routing, trial: RouterTrial) -> float:
    """Return the factor between the router's gate weights and the rules', without the noise of its arithmetic."""
    ratio_N = trial.gates_NE.double().sum(dim=1) / _gates(rules, trial).sum(dim=1)
    ratio = float(ratio_N.median())
    simple = float(f"{ratio:.2g}")
    return simple if abs(ratio - simple) <= 0.002 * simple else float(f"{ratio:.4g}")


def _repeats(rules: Routing, trial: RouterTrial) -> bool:
    given_NE = trial.gates_NE.double()
    apart_N = (_gates(rules, trial) - given_NE).abs().amax(dim=1)
    return bool((apart_N <= _TOLERANCE * given_NE.amax(dim=1)).double().mean() >= _AGREE)


def _gates(rules: Routing, trial: RouterTrial) -> torch.Tensor:
    """Return the rules' gate weights, float64 `[N, E]`, 0 for experts not picked."""
    scores_NE = rules.scores(trial.logits_NE)
    ids_NK, gates_NK = rules.gates(scores_NE, trial.there_E.expand_as(scores_NE))
    return torch.zeros_like(scores_NE).scatter_(1, ids_NK, gates_NK)
