"""How long choosing takes on statistics of a DeepSeek-V3's shape: 58 layers of 256 experts, hidden size 7168.

Prints one row a method and setting, with its limit, and exits with 1 if one is broken: `python -m
benchmarks.select`. Seconds are of one thread's work, which other programs on the machine hardly lengthen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from moe_compress import methods
from moe_compress.types import Budget, ExpertStatistics, MoELayout, RouterGroups

LAYOUT = MoELayout(tuple(range(3, 61)), (256,) * 58, top_k=8, num_groups=8, topk_groups=4)
HIDDEN = 7168
SCORE_SECONDS, PLAN_SECONDS = 2.0, 30.0
HALF = Budget(fraction_dropped=0.5)
OVER_ALL = Budget(fraction_dropped=0.5, scope="global")


@dataclass(frozen=True)
class Case:
    """One way to choose."""

    method: str
    budget: Budget
    limit: float
    parameters: Mapping[str, Any]
    groups: RouterGroups = "balanced"

    def __str__(self) -> str:
        said = [self.budget.scope, *(f"{name}={value}" for name, value in self.parameters.items())]
        return f"{self.method} ({', '.join([*said, *(['flatten'] if self.groups == 'flatten' else [])])})"


def list_cases() -> Iterator[Case]:
    """Yield the methods that choose from sums and products, and C-Prune in all its ways."""
    scoring = [name for name in methods.available() if hasattr(methods.load(name), "score")]
    for name in scoring:
        for budget in (HALF, OVER_ALL):
            yield Case(name, budget, SCORE_SECONDS, {})
    for name in ("m_smoe", "hc_smoe", "group_and_merge"):
        for budget in (HALF, OVER_ALL):
            yield Case(name, budget, SCORE_SECONDS, {})
    for clustering in ("ward", "average", "kmeans"):
        yield Case("c_prune", HALF, PLAN_SECONDS, {"global_clustering": clustering})
    yield Case("c_prune", HALF, PLAN_SECONDS, {"grouping": "rate"})
    yield Case("c_prune", OVER_ALL, PLAN_SECONDS, {})
    yield Case("c_prune", OVER_ALL, PLAN_SECONDS, {}, "flatten")
    few = Budget(experts_per_layer=64)
    yield Case("c_prune", few, PLAN_SECONDS, {"grouping": "fixed", "hierarchical_clusters": 128}, "flatten")


def draw_statistics(seed: int = 0) -> ExpertStatistics:
    """Return random sums; experts' outputs lie about what a layer's have in common."""
    rng = np.random.default_rng(seed)
    shape = (len(LAYOUT.layers), max(LAYOUT.num_experts))
    names = ("gate", "norm", "gate_norm", "gate_norm_change", "gate_change", "router_probability")
    sums = {name: rng.gamma(2.0, size=shape) for name in names}
    sums["count"] = np.stack([rng.permutation(shape[1]) + 1.0 for _ in range(shape[0])])
    sums["embedding"] = rng.standard_normal((*shape, HIDDEN), dtype=np.float32).astype(np.float64)
    sums["embedding"] += rng.standard_normal((shape[0], 1, HIDDEN))
    for name in ("logit_gram", "weight_gram"):
        vectors = rng.standard_normal((*shape, 300))
        sums[name] = vectors @ vectors.transpose(0, 2, 1)
    return ExpertStatistics("drawn", LAYOUT, sums, int(sums["count"][0].sum()) // LAYOUT.top_k)


def draw_clusters(num_experts: int, seed: int) -> list[list[tuple[int, float]]]:
    """Return 32 batches of 12 clusters, as the published code writes them."""
    rng = np.random.default_rng(seed)
    shape = (32, num_experts)
    pairs = zip(rng.integers(12, size=shape).tolist(), rng.random(shape).tolist(), strict=True)
    return [list(zip(*batch, strict=True)) for batch in pairs]


def time_case(case: Case, statistics: ExpertStatistics) -> float:
    """Return the seconds one choice takes."""
    started = time.process_time()
    methods.plan(case.method, statistics, case.budget, 42, case.groups, case.parameters)
    return time.process_time() - started


def time_mixing(statistics: ExpertStatistics) -> float:
    """Return the seconds it takes to find the weights that cover the worst of five domains best."""
    rng = np.random.default_rng(1)
    domains = [
        ExpertStatistics(name, LAYOUT, {"gate_norm_change": rng.gamma(0.3, size=statistics["gate"].shape)}, 0)
        for name in "abcde"
    ]
    started = time.process_time()
    methods.plan_mixed("easy_ep", domains, HALF, 42, "max_min")
    return time.process_time() - started


def time_voting() -> float:
    """Return the seconds of the published votes, from clusters on, of 32 batches in both stages."""
    layers = {layer: draw_clusters(256, layer) for layer in LAYOUT.layers}
    over_all = draw_clusters(58 * (256 - 25), 0)
    started = time.process_time()
    methods.prune_published(layers, over_all, 0.1, 0.1)
    return time.process_time() - started


def measure() -> Iterator[tuple[str, float, float]]:
    """Yield what was timed, its seconds and its limit."""
    statistics = draw_statistics()
    for case in list_cases():
        yield str(case), time_case(case, statistics), case.limit
    yield "easy_ep (5 domains, max_min)", time_mixing(statistics), SCORE_SECONDS
    yield "c_prune_released (votes of 32 batches)", time_voting(), PLAN_SECONDS


def main() -> int:
    """Run the benchmark, print its table, and return 1 if a limit is broken."""
    broken = 0
    with threadpool_limits(1):
        for what, seconds, limit in measure():
            broken += seconds > limit
            verdict = "FAIL" if seconds > limit else "ok  "
            print(f"{verdict} {seconds:7.2f} s <= {limit:4.0f} s  {what}", flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
