"""Every method in the folder: its equation read slowly, and the laws all of them keep."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError, PluginError, StatisticsError
from moe_compress.types import Budget, ExpertStatistics, MoELayout

LAYERS, EXPERTS, TOP_K, TOKENS = 3, 8, 2, 50


@pytest.fixture
def observed():
    """Per layer and token: the experts picked, their gate weights and output norms, and the token's change."""
    rng = np.random.default_rng(7)
    shape = (LAYERS, TOKENS, TOP_K)
    ids = np.stack([[rng.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)] for _ in range(LAYERS)])
    return ids, rng.random(shape), rng.random(shape) * 3, rng.normal(0.1, 0.3, (LAYERS, TOKENS))


def sum_slowly(observed, term):
    """Add `term(g, n, s)` of each routed pair to its expert, one pair at a time."""
    ids, gates, norms, changes = observed
    sums = np.zeros((LAYERS, EXPERTS))
    for layer in range(LAYERS):
        for token in range(TOKENS):
            for k in range(TOP_K):
                change = max(0.0, changes[layer, token])
                value = term(gates[layer, token, k], norms[layer, token, k], change)
                sums[layer, ids[layer, token, k]] += value
    return sums


def sum_probabilities_slowly():
    """Add each token's softmax over all experts, routed or not, one number at a time."""
    logits = np.random.default_rng(11).normal(size=(LAYERS, TOKENS, EXPERTS))
    sums = np.zeros((LAYERS, EXPERTS))
    for layer in range(LAYERS):
        for token in range(TOKENS):
            total = sum(exp(logit) for logit in logits[layer, token])
            for expert in range(EXPERTS):
                sums[layer, expert] += exp(logits[layer, token, expert]) / total
    return sums


def statistics_of(observed):
    sums = {
        "count": sum_slowly(observed, lambda g, n, s: 1.0),
        "gate": sum_slowly(observed, lambda g, n, s: g),
        "norm": sum_slowly(observed, lambda g, n, s: n),
        "gate_norm": sum_slowly(observed, lambda g, n, s: g * n),
        "gate_norm_change": sum_slowly(observed, lambda g, n, s: g * n * s),
        "gate_change": sum_slowly(observed, lambda g, n, s: g * s),
        "router_probability": sum_probabilities_slowly(),
    }
    layout = MoELayout(tuple(range(LAYERS)), (EXPERTS,) * LAYERS, TOP_K)
    return ExpertStatistics("toy", layout, sums, TOKENS)


EQUATIONS = {
    "frequency": lambda g, n, s: 1.0,
    "gating_score": lambda g, n, s: g,
    "ean": lambda g, n, s: n,
    "reap_sum": lambda g, n, s: g * n,
    "easy_ep": lambda g, n, s: g * n * s,
    "easy_ep_without_norm": lambda g, n, s: g * s,
    "easy_ep_without_token": lambda g, n, s: g * n,
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_score_is_its_equation(name, observed):
    scores = methods.load(name).score(statistics_of(observed), seed=0)
    np.testing.assert_allclose(scores, sum_slowly(observed, EQUATIONS[name]), rtol=1e-12)


def test_reap_is_the_mean_over_an_experts_own_tokens(observed):
    ids, gates, norms, _ = observed
    scores = methods.load("reap").score(statistics_of(observed), seed=0)
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            picked = ids[layer] == expert
            expected = np.mean((gates[layer] * norms[layer])[picked]) if picked.any() else 0.0
            assert scores[layer, expert] == pytest.approx(expected)


def test_seer_is_the_summed_softmax(observed):
    scores = methods.load("seer").score(statistics_of(observed), seed=0)
    np.testing.assert_allclose(scores, sum_probabilities_slowly(), rtol=1e-12)


def test_seer_over_all_layers_is_the_ranking_of_its_sums_as_they_are(observed):
    statistics = statistics_of(observed)
    plan = methods.plan("seer", statistics, Budget(fraction_dropped=0.5, scope="global"), seed=0)
    sums = statistics["router_probability"]
    best = sorted(np.ndindex(sums.shape), key=lambda place: -sums[place])[: LAYERS * EXPERTS // 2]
    assert min(map(len, plan.kept)) > TOP_K  # the floor is out of play
    assert {(layer, expert) for layer, kept in enumerate(plan.kept) for expert in kept} == set(best)


SCORING = [name for name in methods.available() if hasattr(methods.load(name), "score")]


def test_random_is_repeatable_and_differs_by_seed_and_layer(observed):
    statistics = statistics_of(observed)
    score = methods.load("random").score
    np.testing.assert_array_equal(score(statistics, 1), score(statistics, 1))
    assert (score(statistics, 1) != score(statistics, 2)).any()
    assert (score(statistics, 1)[0] != score(statistics, 1)[1]).any()


@pytest.mark.parametrize("name", SCORING)
def test_budget_is_met_exactly_and_the_best_stay(name, observed):
    statistics = statistics_of(observed)
    plan = methods.plan(name, statistics, Budget(experts_per_layer=5), seed=3)
    assert plan.new_layout.num_experts == (5, 5, 5)
    for layer, kept in enumerate(plan.kept):
        dropped = set(range(EXPERTS)) - set(kept)
        assert min(plan.scores[layer, list(kept)]) >= max(plan.scores[layer, list(dropped)])


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", sorted({*EQUATIONS, "reap", "seer"}))
def test_permuting_experts_permutes_the_plan(name, scope, observed):
    statistics = statistics_of(observed)
    order = np.random.default_rng(0).permutation(EXPERTS)
    permuted = ExpertStatistics(
        "toy", statistics.layout, {k: v[:, order] for k, v in statistics.sums.items()}, TOKENS
    )
    scores = methods.load(name).score(statistics, 0)
    assert all(len(set(row)) == EXPERTS for row in scores) or name == "frequency"
    if name == "frequency":  # counts tie, and ties are broken by a draw that does not follow the experts
        np.testing.assert_array_equal(methods.load(name).score(permuted, 0), scores[:, order])
        return
    budget = Budget(experts_per_layer=4, scope=scope)
    kept = methods.plan(name, statistics, budget, 0).kept
    kept_permuted = methods.plan(name, permuted, budget, 0).kept
    assert [set(order[list(row)]) for row in kept_permuted] == [set(row) for row in kept]


def test_ties_do_not_favour_low_expert_ids():
    layout = MoELayout((0,), (64,), 2)
    ones = ExpertStatistics("toy", layout, {"count": np.ones((1, 64))}, 32)
    first = [methods.plan("frequency", ones, Budget(experts_per_layer=32), seed).kept[0] for seed in range(20)]
    assert len(set(first)) == 20
    # Of 20 fair draws of 32 of 64, expert 0 stays in about 10.
    assert 2 <= sum(0 in kept for kept in first) <= 18


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(experts_per_layer=1), "layer 0 would keep 1 experts, but the router picks top_k=2"),
        (Budget(experts_per_layer=9), "layer 0 would keep 9 experts, but it has 8"),
        (Budget(fraction_dropped=0.9), "layer 0 would keep 1 experts"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(budget, message, observed):
    with pytest.raises(ParameterError, match=message):
        methods.plan("easy_ep", statistics_of(observed), budget, 0)


@pytest.mark.parametrize("given", [{}, {"experts_per_layer": 4, "fraction_dropped": 0.5}])
def test_a_budget_is_said_one_way(given):
    with pytest.raises(ParameterError, match="exactly one of experts_per_layer and fraction_dropped"):
        Budget(**given)


def test_a_fraction_of_one_is_refused():
    with pytest.raises(ParameterError, match=r"fraction_dropped is 1\.0"):
        Budget(fraction_dropped=1.0)


def test_fractions_drop_what_rounds_down():
    layout = MoELayout((0, 1), (10, 10), 2)
    # 0.3 * 10 is 2.9999... in floating point only on some machines; three experts must go.
    assert methods.experts_to_keep(Budget(fraction_dropped=0.3), layout) == (7, 7)
    assert methods.experts_to_keep(Budget(fraction_dropped=0.25), layout) == (8, 8)


def test_an_unknown_method_is_answered_with_the_near_miss():
    with pytest.raises(PluginError, match=r"no 'easyep' in methods/ \(did you mean 'easy_ep'\?\)"):
        methods.load("easyep")


def test_a_sum_that_was_not_collected_is_named():
    layout = MoELayout((0,), (4,), 2)
    with pytest.raises(StatisticsError, match="no statistic 'gate_norm' was collected"):
        methods.load("reap").score(ExpertStatistics("toy", layout, {"count": np.full((1, 4), 2.0)}, 4), 0)


def test_a_reduction_says_all_it_depends_on():
    absolute = methods.reduction("reconstruct", 3, {"error": "absolute"})
    assert repr(absolute) == repr(methods.reduction("reconstruct", 3, {"error": "absolute"}))
    assert repr(absolute) not in (
        repr(methods.reduction("reconstruct", 4, {"error": "absolute"})),
        repr(methods.reduction("reconstruct", 3)),
    )
    assert repr(methods.reduction("easy_ep", 3)) == repr(methods.reduction("reconstruct", 3))
    with pytest.raises(ParameterError, match="reconstruct's parameter 'error' is 'l2'"):
        methods.reduction("reconstruct", 3, {"error": "l2"})
