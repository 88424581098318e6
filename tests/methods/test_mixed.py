"""Mixed domains: I_mix read slowly, weights, and the search for the worst domain's best coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError, StatisticsError
from moe_compress.methods._mixed import MAX_MIN_ROUNDS, coverage, max_min_weights, mix_scores
from moe_compress.types import Budget, CompressionPlan, ExpertStatistics, MoELayout, pruning_groups

LAYOUT = MoELayout((1, 2, 3), (12, 12, 8), 2)
HALF = Budget(fraction_dropped=0.5)


def domain_statistics(name, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 1.5, (3, 12)) * scale
    values[2, 8:] = 0.0  # the last layer has 8 experts
    return ExpertStatistics(name, LAYOUT, {"gate": values, "norm": rng.random((3, 12))}, 0)


@pytest.fixture
def domains():
    scales = {"code": 1.0, "law": 1000.0, "medical": 0.01}
    return [domain_statistics(name, seed, scale) for seed, (name, scale) in enumerate(scales.items())]


def mix_slowly(domains, weights):
    mixed = np.zeros((3, 12))
    for layer, experts in enumerate(LAYOUT.num_experts):
        for expert in range(experts):
            for each, weight in zip(domains, weights, strict=True):
                total = sum(each["gate"][layer, other] for other in range(experts))
                mixed[layer, expert] += weight * each["gate"][layer, expert] / total
    return mixed


def coverage_slowly(scores, kept):
    shares = []
    for layer, row in enumerate(kept):
        best = sorted(scores[layer], reverse=True)[: len(row)]
        shares.append(sum(scores[layer][expert] for expert in row) / sum(best))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.5, 2, 0)])
def test_mixing_is_its_equation(domains, weights):
    mixed = mix_scores([each["gate"] for each in domains], weights, LAYOUT)
    np.testing.assert_allclose(mixed, mix_slowly(domains, weights), rtol=1e-12)


@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_a_mixed_plan_keeps_the_best_of_the_mix(domains, scope):
    budget = Budget(fraction_dropped=0.5, scope=scope)
    plan = methods.plan_mixed("gating_score", domains, budget, 0, weights={"law": 2.0})
    np.testing.assert_allclose(plan.scores, mix_slowly(domains, (1, 2, 1)), rtol=1e-12)
    assert sum(plan.new_layout.num_experts) == 16
    for row, (kept, experts) in enumerate(zip(plan.kept, LAYOUT.num_experts, strict=True)):
        dropped = set(range(experts)) - set(kept)
        assert min(plan.scores[row, list(kept)]) > max(plan.scores[row, list(dropped)])
    assert plan.provenance == {"domains": "code+law+medical", "domain_weights": "code=1, law=2, medical=1"}


def with_layers_worth(name, *worth):
    """Return statistics of equal experts, four layers of them, whose gates add up to what is given."""
    layout = MoELayout((0, 1, 2, 3), (16,) * 4, 2)
    return ExpertStatistics(name, layout, {"gate": np.outer(worth, np.full(16, 1 / 16))}, 0)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        # The floors are 2 of each layer, so 24 of 32 are shared. Of a's score the layers have 0, 1, 3 and 4
        # eighths, of b's layer 0 has all: together 8 : 1 : 3 : 4, of which d'Hondt makes 13, 1, 4 and 6.
        (None, (15, 3, 6, 8)),
        ("max_min", (15, 3, 6, 8)),  # equal experts are covered alike by any, so equal weights are the best
        ({"a": 2, "b": 0}, (2, 5, 11, 14)),
    ],
)
def test_a_total_by_importance_is_shared_by_what_layers_are_worth_to_the_domains(weights, counts):
    one, other = with_layers_worth("a", 0, 1, 3, 4), with_layers_worth("b", 1000, 0, 0, 0)
    budget = Budget(fraction_dropped=0.5, scope="importance")
    assert methods.plan_mixed("gating_score", [one, other], budget, 0, weights).new_layout.num_experts == counts


@pytest.mark.parametrize("scope", ["per_layer", "global", "importance"])
def test_one_domain_mixed_is_that_domains_plan(domains, scope):
    half = Budget(fraction_dropped=0.5, scope=scope)
    alone = methods.plan("gating_score", domains[0], half, 3)
    for weights in (None, {"code": 0.3}, "max_min"):
        assert methods.plan_mixed("gating_score", domains[:1], half, 3, weights).kept == alone.kept


def test_a_domain_of_weight_zero_says_nothing(domains):
    alone = methods.plan("gating_score", domains[1], HALF, 3)
    mixed = methods.plan_mixed("gating_score", domains, HALF, 3, {"code": 0, "medical": 0})
    assert mixed.kept == alone.kept


@pytest.mark.parametrize("weights", [None, {"code": 0.1, "law": 0.7}, "max_min"])
@pytest.mark.parametrize("scope", ["per_layer", "global", "importance"])
def test_the_order_of_statistics_does_not_matter(domains, weights, scope):
    budget = Budget(fraction_dropped=0.5, scope=scope)
    plans = [
        methods.plan_mixed("gating_score", list(order), budget, 0, weights)
        for order in itertools.permutations(domains)
    ]
    assert len({plan.digest for plan in plans}) == 1
    for plan in plans:
        np.testing.assert_array_equal(plan.scores, plans[0].scores)


@pytest.mark.parametrize("weights", [None, "max_min"])
def test_permuting_experts_permutes_the_plan(weights):
    layout = MoELayout((0, 1), (16, 16), 2)
    rng, order = np.random.default_rng(4), np.random.default_rng(5).permutation(16)
    plain = [ExpertStatistics(name, layout, {"gate": rng.lognormal(0, 1, (2, 16))}, 0) for name in "ab"]
    permuted = [ExpertStatistics(each.domain, layout, {"gate": each["gate"][:, order]}, 0) for each in plain]
    kept = methods.plan_mixed("gating_score", plain, HALF, 0, weights).kept
    kept_permuted = methods.plan_mixed("gating_score", permuted, HALF, 0, weights).kept
    assert [set(order[list(row)].tolist()) for row in kept_permuted] == [set(row) for row in kept]


def test_keeping_all_is_the_identity(domains):
    for weights in (None, "max_min"):
        plan = methods.plan_mixed("gating_score", domains, Budget(fraction_dropped=0.0), 0, weights)
        assert plan.kept == tuple(tuple(range(experts)) for experts in LAYOUT.num_experts)


def test_coverage_is_its_definition(domains):
    kept = ((0, 5, 7), (1, 2), (0, 3, 4, 6))
    plan = CompressionPlan(LAYOUT, tuple(pruning_groups(row) for row in kept), "toy")
    for each in domains:
        assert coverage(each["gate"], plan) == pytest.approx(coverage_slowly(each["gate"], kept))
    own = methods.plan("gating_score", domains[0], HALF, 0)
    assert coverage(domains[0]["gate"], own) == 1.0
    assert coverage(np.zeros((3, 12)), own) == 1.0


def max_min_slowly(domains, budget):
    """Return (worst coverage, weights) of the best round, and its number: plan, measure, raise the worst."""
    names = [each.domain for each in domains]
    weights, best = dict.fromkeys(names, 1.0), (-1.0, None, None)
    for update in range(61):
        plan = methods.plan_mixed("gating_score", domains, budget, 0, weights)
        covered = {each.domain: coverage_slowly(each["gate"], plan.kept) for each in domains}
        worst = min(names, key=covered.__getitem__)
        if covered[worst] > best[0] + 1e-12:
            best = (covered[worst], list(weights.values()), update)
        weights[worst] *= 1 + 1 / (2 * (update + 1) ** 0.5)
        mean = sum(weights.values()) / len(weights)
        weights = {name: weight / mean for name, weight in weights.items()}
    return best


def test_max_min_is_its_slow_reading():
    layout, rounds = MoELayout((0, 1), (48, 48), 2), []
    for seed in (0, 3, 51):
        rng = np.random.default_rng(seed)
        domains = [ExpertStatistics(name, layout, {"gate": rng.lognormal(0, 2, (2, 48))}, 0) for name in "abcd"]
        worst, weights, best_round = max_min_slowly(domains, HALF)
        plan = methods.plan_mixed("gating_score", domains, HALF, 0, "max_min")
        described = ", ".join(f"{name}={weight:g}" for name, weight in zip("abcd", weights, strict=True))
        assert plan.provenance["domain_weights"] == described
        assert min(coverage(each["gate"], plan) for each in domains) == pytest.approx(worst)
        rounds.append(best_round)
    assert MAX_MIN_ROUNDS == 60
    assert max(rounds) > 50  # one of them is decided late, so the number of rounds counts


@pytest.mark.parametrize("seed", range(5))
def test_max_min_never_covers_the_worst_domain_less_than_equal_weights(seed):
    domains = [domain_statistics(name, 10 * seed + n) for n, name in enumerate("abcd")]
    worst = {}
    for weights in (None, "max_min"):
        plan = methods.plan_mixed("gating_score", domains, HALF, 0, weights)
        worst[weights] = min(coverage(each["gate"], plan) for each in domains)
    assert worst["max_min"] > worst[None]


def test_max_min_nears_the_best_weights_of_two_domains():
    domains = [domain_statistics(name, seed) for seed, name in enumerate("ab")]
    scores = [each["gate"] for each in domains]

    def worst_at(share):
        plan = methods.plan_mixed("gating_score", domains, HALF, 0, {"a": share, "b": 1 - share})
        return min(coverage(each, plan) for each in scores)

    best = max(worst_at(share) for share in np.linspace(0.01, 0.99, 197))
    plan = methods.plan_mixed("gating_score", domains, HALF, 0, "max_min")
    assert min(coverage(each, plan) for each in scores) == pytest.approx(best, abs=0.01)


def test_weights_have_mean_one(domains):
    scores = [each["gate"] for each in domains]

    def plan_mixture(weights):
        mixed = mix_scores(scores, weights, LAYOUT)
        kept = [np.argsort(-row[:experts])[:4] for row, experts in zip(mixed, LAYOUT.num_experts, strict=True)]
        return CompressionPlan(LAYOUT, tuple(pruning_groups(row.tolist()) for row in kept), "toy")

    assert np.mean(max_min_weights(scores, plan_mixture)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dental": 1.0}, "domain 'dental', which is not mixed; give weights for code, law, medical"),
        ({"code": -1.0}, "domain 'code' has weight -1.0"),
        ({"law": float("nan")}, "domain 'law' has weight nan"),
        ({"code": 0, "law": 0, "medical": 0}, "every domain of code, law, medical has weight 0"),
        ("minmax", "weights 'minmax'.*max_min"),
    ],
)
def test_weights_that_do_not_fit_are_refused(domains, weights, message):
    with pytest.raises(ParameterError, match=message):
        methods.plan_mixed("gating_score", domains, HALF, 0, weights)


def test_statistics_that_do_not_belong_together_are_refused(domains):
    with pytest.raises(StatisticsError, match="no statistics were given"):
        methods.plan_mixed("gating_score", [], HALF, 0)
    with pytest.raises(StatisticsError, match="domain 'law' is mixed twice"):
        methods.plan_mixed("gating_score", [*domains, domains[1]], HALF, 0)
    other = ExpertStatistics("zoo", MoELayout((1,), (12,), 2), {"gate": np.ones((1, 12))}, 0)
    with pytest.raises(StatisticsError, match="'code' and 'zoo' have different layouts"):
        methods.plan_mixed("gating_score", [other, *domains], HALF, 0)
