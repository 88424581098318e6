"""A small table of results, its answers chosen so that everything can be worked by hand."""

from __future__ import annotations

from moe_compress.reporting.results_table import ResultsTable
from moe_compress.types import (
    MIXED,
    CompressionPlan,
    ExpertGroup,
    LeftOut,
    Measurement,
    MoELayout,
    TrialKey,
    pruning_groups,
)

DOMAINS = ("medical", "math")
LAYOUT = MoELayout((0,), (4,), 2)
ITEMS = 200


def measured(num_right: int, kl: float = 0.5, perplexity: float = 6.0) -> Measurement:
    """Return a measurement whose first items are right."""
    right = tuple(number < num_right for number in range(ITEMS))
    return Measurement(right, perplexity, kl, 600)


def prunes(kept: tuple[int, ...] = (0, 1)) -> CompressionPlan:
    return CompressionPlan(LAYOUT, (pruning_groups(kept),), "toy")


def merges() -> CompressionPlan:
    groups = (ExpertGroup((0, 1), (0.5, 0.5)), ExpertGroup((2, 3), (0.5, 0.5)))
    return CompressionPlan(LAYOUT, (groups,), "toy")


def make_table() -> ResultsTable:
    """Return two domains, both with 150 of 200 right at the base; chance is a quarter.

    `easy_ep` keeps 130 and 150 for one domain (80 % and 100 %), 110 and 110 mixed (60 % each). `hc_smoe` merges and
    keeps 100 and 60 (50 % and 10 %); `random`'s two seeds keep 50 and 70 (0 % and 20 %) of both.
    """
    own = {"easy_ep": (130, 150), "hc_smoe": (100, 60)}
    found, plans = {}, {}
    for row, numbers in own.items():
        for domain, number in zip(DOMAINS, numbers, strict=True):
            key = TrialKey(row, domain, 0.5, 42)
            plans[key] = merges() if row == "hc_smoe" else prunes((0, 1) if domain == "medical" else (1, 2))
            found[key, domain] = measured(number, kl=0.1 if row == "easy_ep" else 2.0)
    key = TrialKey("easy_ep", MIXED, 0.5, 42)
    plans[key] = prunes((0, 2))
    for domain in DOMAINS:
        found[key, domain] = measured(110)
        other = TrialKey("easy_ep", domain, 0.5, 42)
        elsewhere = DOMAINS[1 - DOMAINS.index(domain)]
        found[other, elsewhere] = measured(70)
        for seed, number in ((1, 50), (2, 70)):
            random = TrialKey("random", domain, 0.5, seed)
            plans[random], found[random, domain] = prunes((2, 3)), measured(number, kl=3.0 + seed)
    base = {domain: Measurement(measured(150).right, 5.0, 0.0, 1000) for domain in DOMAINS}
    left_out = (LeftOut("reconstruct, mixed", "ranks do not add"),)
    return ResultsTable(base, found, plans, dict.fromkeys(DOMAINS, 0.25), left_out)
