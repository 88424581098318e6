"""What the papers report of the same methods, and which of their statements hold in a table of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from moe_compress.reporting.results_table import Estimate, Kind, ResultsTable
from moe_compress.types import FloatArray

Verdict = Literal["holds", "does not hold", "open"]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper: the average scores of methods at one fraction dropped.

    Attributes:
        title: which model, and which paper.
        fraction: share of the experts dropped.
        kind: whether plans were made for one domain each, or for all.
        base: the average of the whole model.
        averages: our row -> the paper's average; Seer Prune ranks over all layers, as our `seer_global` does.
    """

    title: str
    fraction: float
    kind: Kind
    base: float
    averages: Mapping[str, float]


_R1 = "EASY-EP, DeepSeek-R1"
_V3 = "EASY-EP, DeepSeek-V3-0324"
TABLES = (
    PaperTable(
        f"{_R1}, half of the experts dropped",
        0.5,
        "own",
        67.20,
        {"easy_ep": 66.55, "gating_score": 56.49, "frequency": 31.59, "m_smoe": 22.10, "random": 17.44},
    ),
    PaperTable(
        f"{_R1}, half dropped, domains mixed",
        0.5,
        "mixed",
        67.20,
        {"easy_ep": 61.47, "gating_score": 31.67, "frequency": 29.85, "m_smoe": 18.40},
    ),
    PaperTable(
        f"{_R1}, three quarters dropped",
        0.75,
        "own",
        67.20,
        {"easy_ep": 45.22, "gating_score": 8.75, "random": 3.26, "frequency": 2.58, "m_smoe": 1.52},
    ),
    PaperTable(
        f"{_V3}, half of the experts dropped",
        0.5,
        "own",
        54.08,
        {"easy_ep": 54.12, "gating_score": 53.83, "frequency": 51.36, "m_smoe": 48.54, "random": 21.78},
    ),
    PaperTable(
        f"{_V3}, half dropped, domains mixed",
        0.5,
        "mixed",
        54.08,
        {"easy_ep": 54.92, "gating_score": 49.36, "frequency": 46.59, "m_smoe": 40.84},
    ),
    PaperTable(
        f"{_V3}, three quarters dropped",
        0.75,
        "own",
        54.08,
        {"easy_ep": 49.19, "gating_score": 37.69, "frequency": 31.65, "m_smoe": 17.18, "random": 3.49},
    ),
    PaperTable(
        "C-Prune, DeepSeek-V2-Lite, a fifth dropped",
        0.2,
        "own",
        38.27,
        {"c_prune": 32.86, "group_and_merge": 17.64, "seer_global": 15.33, "random": 7.93},
    ),
    PaperTable(
        "C-Prune, Qwen1.5-MoE-A2.7B, a fifth dropped",
        0.2,
        "own",
        44.55,
        {"c_prune": 35.69, "group_and_merge": 26.98, "seer_global": 19.36, "random": 11.93},
    ),
)


@dataclass(frozen=True)
class Claim:
    """A statement of a paper that our table can be asked about.

    Attributes:
        source: which paper and model.
        text: the statement.
        reported: the paper's figures.
        row: the row it is about.
        kind: the plans it is about.
        fraction: share of the experts dropped.
        over: the row, and the kind of its plans, that it is said to beat; None for a share of the base kept.
        at_least: the share of the base's accuracy above chance that it is said to keep.
        domain: the one domain it is about; None for the mean of all.
    """

    source: str
    text: str
    reported: str
    row: str
    kind: Kind
    fraction: float
    over: tuple[str, Kind] | None = None
    at_least: float = 0.0
    domain: str | None = None


def _beats(table: PaperTable) -> list[Claim]:
    """Return that each method of a paper's table beats the next lower one."""
    ranked = sorted(table.averages, key=lambda name: -table.averages[name])
    return [
        Claim(
            table.title,
            f"`{row}` keeps more than `{other}`",
            f"{table.averages[row]:.2f} against {table.averages[other]:.2f}",
            row,
            table.kind,
            table.fraction,
            (other, table.kind),
        )
        for row, other in pairwise(ranked)
    ]


_ABLATION = f"{_R1}, three quarters dropped, ablation"
CLAIMS = (
    Claim(
        TABLES[0].title,
        "`easy_ep` keeps nearly all (here: at least 95 %)",
        "66.55 of 67.20 (99.0 %)",
        "easy_ep",
        "own",
        0.5,
        at_least=0.95,
    ),
    *(claim for table in TABLES for claim in _beats(table)),
    Claim(
        _R1,
        "`easy_ep` for one domain keeps more than for all mixed",
        "66.55 against 61.47",
        "easy_ep",
        "own",
        0.5,
        ("easy_ep", "mixed"),
    ),
    Claim(
        _V3,
        "`easy_ep` for all domains mixed keeps more than for one",
        "54.92 against 54.12",
        "easy_ep",
        "mixed",
        0.5,
        ("easy_ep", "own"),
    ),
    *(
        Claim(_ABLATION, f"`easy_ep` keeps more than `{other}`", said, "easy_ep", "own", 0.75, (other, "own"))
        for other, said in (
            ("easy_ep_without_token", "50.23 against 41.94 (mean of six benchmarks)"),
            ("easy_ep_without_norm", "50.23 against 38.82 (mean of six benchmarks)"),
        )
    ),
    Claim(
        "REAP, Qwen3-Coder-480B, half dropped",
        "`reap` keeps nearly all on code (here: at least 95 %)",
        ".644 of .660 (97.6 %)",
        "reap",
        "own",
        0.5,
        at_least=0.95,
        domain="code",
    ),
    *(
        Claim(
            "Seen by others, multiple choice, half dropped",
            f"merging (`{row}`) keeps more than pruning (`reap`)",
            "a tendency, no figures",
            row,
            "own",
            0.5,
            ("reap", "own"),
        )
        for row in ("hc_smoe", "m_smoe")
    ),
)


@dataclass(frozen=True)
class Judged:
    """A claim beside our own figures.

    Attributes:
        claim: the statement.
        ours: the share kept, or the difference of two shares.
        verdict: `holds` or `does not hold` where the whole interval says so, else `open`.
    """

    claim: Claim
    ours: Estimate
    verdict: Verdict


def judge_claims(table: ResultsTable) -> list[Judged]:
    """Return every claim that the table has the rows for, with our figures."""
    return [_judge(claim, table) for claim in CLAIMS if _can_judge(claim, table)]


def _can_judge(claim: Claim, table: ResultsTable) -> bool:
    wanted = [(claim.row, claim.kind), *([claim.over] if claim.over else [])]
    domains = {claim.domain} if claim.domain else set()
    return domains <= set(table.domains) and all(row in table.rows(kind, claim.fraction) for row, kind in wanted)


def _judge(claim: Claim, table: ResultsTable) -> Judged:
    def kept(row: str, kind: Kind) -> FloatArray:
        if claim.domain:
            return table.kept(row, kind, claim.fraction, claim.domain)
        return table.mean_kept(row, kind, claim.fraction)

    ours = kept(claim.row, claim.kind)
    if claim.over:
        ours = ours - kept(*claim.over)
    estimate = Estimate.of(ours)
    return Judged(claim, estimate, decide(estimate, claim.at_least))


def decide(ours: Estimate, at_least: float) -> Verdict:
    """Return what an interval says of `ours >= at_least`."""
    if ours.low > at_least:
        return "holds"
    return "does not hold" if ours.high < at_least else "open"
