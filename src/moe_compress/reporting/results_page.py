"""The page of method results: a summary, the papers' statements, every fraction's tables; all from the numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_compress.atomic import write_atomically
from moe_compress.reporting import wording
from moe_compress.reporting.papers import TABLES, Judged, PaperTable, judge_claims
from moe_compress.reporting.results_csv import as_csv
from moe_compress.reporting.results_table import Cell, Estimate, Kind, ResultsTable
from moe_compress.types import MIXED

_DPI = 90


@dataclass(frozen=True)
class Background:
    """What the page says of the model and the measurement.

    Attributes:
        num_parameters: of the base model.
        num_layers: with experts.
        num_experts: per layer.
        top_k: experts per token.
        num_items: benchmark items per domain.
        num_texts: held-out texts per domain; None for all.
        command: what makes the same page again.
    """

    num_parameters: int
    num_layers: int
    num_experts: int
    top_k: int
    num_items: int
    num_texts: int | None
    command: str


def write_results_page(table: ResultsTable, background: Background, page: Path) -> list[Path]:
    """Write the page, its figures and its numbers as CSV beside it; return the files."""
    from moe_compress.reporting.figures.overlap import overlap_matrix
    from moe_compress.reporting.results_figures import divergence_figure, kept_figure

    figures = {"methods-kept.png": kept_figure(table), "methods-kl.png": divergence_figure(table)}
    for fraction in compared_fractions(table):
        plans = {key.made_for: plan for key, plan in table.plans.items() if key[::2] == (table.compared, fraction)}
        own = {domain: plans[domain] for domain in table.domains}
        figures[_overlap_name(fraction)] = overlap_matrix(own)
    page.parent.mkdir(parents=True, exist_ok=True)
    files = [page, page.with_suffix(".csv")]
    for name, figure in figures.items():
        files.append(page.with_name(name))
        figure.savefig(files[-1], dpi=_DPI, bbox_inches="tight")
    write_atomically(files[1], as_csv(table).encode())
    write_atomically(page, "\n".join(_sections(table, background, files[1].name)).encode())
    return files


def compared_fractions(table: ResultsTable) -> list[float]:
    """Return the fractions at which the compared row's plans were measured on other domains too."""
    first, *others = table.domains
    return [f for f in table.fractions if all(table.has(table.compared, first, f, other) for other in others)]


def _sections(table: ResultsTable, background: Background, numbers: str) -> Iterator[str]:
    judged = judge_claims(table)
    yield _introduction(background, numbers)
    yield "## In short\n\n" + "\n".join(f"- {line}" for line in summarise(table, judged)) + "\n"
    yield "![share of accuracy kept](methods-kept.png)\n\n![KL to the base](methods-kl.png)\n"
    yield _base_section(table)
    yield _papers_section(table, judged)
    for fraction in table.fractions:
        yield f"## {_percent(fraction)} of the experts dropped\n"
        yield _table_of(table, "own", fraction)
        yield _table_of(table, "mixed", fraction)
        if fraction in compared_fractions(table):
            yield _other_table(table, fraction)
    yield _left_out_section(table)


def _introduction(background: Background, numbers: str) -> str:
    texts = "all" if background.num_texts is None else str(background.num_texts)
    return (
        "# What each method keeps\n\n"
        f"Made by `{background.command}` (`make results` asks as many questions as conf says) with the embedded "
        f"reference model ({wording.count(background.num_parameters)} "
        f"parameters, {background.num_layers} layers of {background.num_experts} experts, {background.top_k} per "
        "token). Every method plans from the same pass over each domain's demonstrations: *own* plans are made for "
        "one domain and measured on it, *mixed* plans are made for all domains at once and measured on each. What "
        "only prunes is tried under a router mask, which equals removing the experts; what merges is written as a "
        "checkpoint and loaded. Accuracy is over "
        f"{background.num_items} held-out four-way questions a domain, perplexity and KL to the base (nats per "
        f"token) over {texts} held-out texts a domain. *Kept* is the share of the base's accuracy above chance. "
        "Intervals are 95 %, bootstrapped over questions; methods are compared on the same questions. Nothing was "
        "tuned on these numbers, and nothing was trained after compressing. All of it as "
        f"[CSV]({numbers}).\n"
    )


def summarise(table: ResultsTable, judged: Sequence[Judged]) -> list[str]:
    """Return the page's findings as sentences, each made from the numbers."""
    lines = [*_kept_sentences(table), *_kl_sentences(table)]
    if judged:
        verdicts = Counter(each.verdict for each in judged)
        lines.append(
            f"**The papers:** of {len(judged)} statements that this table can be asked about, {verdicts['holds']} "
            f"hold here, {verdicts['does not hold']} do not, and {verdicts['open']} the intervals leave open."
        )
    return lines


def _kept_sentences(table: ResultsTable) -> list[str]:
    """Return the findings on the mean share kept, or why there is none."""
    if table.guessed:
        domains = ", ".join(table.guessed)
        return [f"**No mean share kept:** the base model answers no better than guessing on {domains}."]
    lines = [_best_sentence(table, fraction) for fraction in table.fractions if table.rows("own", fraction)]
    fraction = min(table.fractions, key=lambda each: abs(each - 0.5))
    return [*lines, *_mixed_sentences(table, fraction), *_merging_sentences(table)]


def _best_sentence(table: ResultsTable, fraction: float) -> str:
    """Return the row that keeps most, and those that cannot be told from it."""
    best, *others = table.rows("own", fraction)
    top_R = table.mean_kept(best, "own", fraction)
    close = [row for row in others if not Estimate.of(top_R - table.mean_kept(row, "own", fraction)).low > 0]
    alike = ", ".join(f"`{row}`" for row in close)
    others_say = f"{alike} cannot be told from it" if alike else "all others keep less"
    last = others[-1] if others else best
    least = Estimate.of(table.mean_kept(last, "own", fraction))
    return (
        f"**{_percent(fraction)} dropped:** `{best}` keeps most, {_estimate(Estimate.of(top_R))}; {others_say}; "
        f"`{last}` keeps least, {_estimate(least)}."
    )


def _mixed_sentences(table: ResultsTable, fraction: float) -> list[str]:
    mixed, row = table.rows("mixed", fraction), table.compared
    if row not in mixed or row not in table.rows("own", fraction):
        return []
    change = Estimate.of(table.mean_kept(row, "mixed", fraction) - table.mean_kept(row, "own", fraction))
    best = Estimate.of(table.mean_kept(mixed[0], "mixed", fraction))
    return [
        f"**One plan for all domains** ({_percent(fraction)} dropped): `{row}` changes by {_points(change)} points "
        f"against its plans for one domain; `{mixed[0]}` keeps most, {_estimate(best)}."
    ]


def _merging_sentences(table: ResultsTable) -> list[str]:
    """Return how the best row that merges compares with the best that prunes, at each fraction."""
    found = []
    for fraction in table.fractions:
        rows = table.rows("own", fraction)
        merging = next((row for row in rows if table.merges(row)), None)
        pruning = next((row for row in rows if not table.merges(row)), None)
        if merging and pruning:
            change = table.mean_kept(merging, "own", fraction) - table.mean_kept(pruning, "own", fraction)
            found.append(f"{_percent(fraction)}: `{merging}` {_points(Estimate.of(change))} beside `{pruning}`")
    if not found:
        return []
    return [f"**Merging against pruning**, best of each, points by fraction dropped: {'; '.join(found)}."]


def _kl_sentences(table: ResultsTable) -> list[str]:
    found = []
    for fraction in table.fractions:
        values = {row: table.mean_kl(row, "own", fraction) for row in table.rows("own", fraction)}
        known = {row: value for row, value in values.items() if math.isfinite(value)}
        if known:
            best = min(known, key=known.__getitem__)
            found.append(f"{_percent(fraction)}: `{best}` ({wording.number(known[best], 3)})")
    return [f"**Closest to the base by KL**, by fraction dropped: {'; '.join(found)}."] if found else []


def _base_section(table: ResultsTable) -> str:
    rows = [
        [domain, f"{100 * each.accuracy:.1f}", wording.number(each.perplexity), f"{100 * table.chance[domain]:.0f}"]
        for domain, each in table.base.items()
    ]
    return "The base model:\n\n" + _table(["domain", "accuracy, %", "perplexity", "chance, %"], rows)


def _papers_section(table: ResultsTable, judged: Sequence[Judged]) -> str:
    rows = [
        [
            each.claim.source,
            each.claim.text,
            each.claim.reported,
            _points(each.ours) + " points" if each.claim.over else _estimate(each.ours),
            f"**{each.verdict}**",
        ]
        for each in judged
    ]
    parts = [
        "## Beside the papers\n\nThe papers compress models of 14 to 671 billion parameters and mostly let them "
        "write their answers; here a model a thousand times smaller and more picks one of four. So what can agree "
        "is the order of methods, and roughly how much is kept, not scores. A statement holds where the whole "
        "interval is on its side, does not hold where it is all on the other, and is open otherwise.\n",
        _table(["paper", "statement", "reported", "here", "verdict"], rows),
        "Ranks and shares of the base kept (the papers': average score over the base's; ours: accuracy above "
        "chance over the base's):\n",
        *(_rank_table(table, paper) for paper in TABLES),
    ]
    return "\n".join(part for part in parts if part)


def _rank_table(table: ResultsTable, paper: PaperTable) -> str:
    """Return a paper's methods and ours side by side; nothing where this table lacks the fraction."""
    have = [row for row in table.rows(paper.kind, paper.fraction) if row in paper.averages]
    theirs = sorted(paper.averages, key=lambda row: -paper.averages[row])
    if not have:
        return ""
    rows = []
    for rank, row in enumerate(theirs, start=1):
        ours = ["\N{EN DASH}"] * 2
        if row in have:
            kept = Estimate.of(table.mean_kept(row, paper.kind, paper.fraction))
            ours = [str(have.index(row) + 1), _estimate(kept)]
        share = wording.percent(paper.averages[row] / paper.base)
        rows.append([f"`{row}`", f"{paper.averages[row]:.2f}", str(rank), share, *ours])
    head = ["method", "paper", "rank there", "kept there", "rank here", "kept here"]
    return f"{paper.title} (base {paper.base:.2f}):\n\n" + _table(head, rows)


def _table_of(table: ResultsTable, kind: Kind, fraction: float) -> str:
    """Return rows by domains for one kind of plans."""
    words = {
        "own": "Each plan on the domain it was made for",
        "mixed": "One plan for all domains, on each of them",
    }
    rows = []
    for row in table.rows(kind, fraction):
        cells = [table.cell(row, d if kind == "own" else MIXED, fraction, d) for d in table.domains]
        rows.append(
            [
                f"`{row}`{' (merges)' if table.merges(row) else ''}",
                _estimate(Estimate.of(table.mean_kept(row, kind, fraction))),
                wording.number(table.mean_kl(row, kind, fraction), 3),
                wording.count(table.mean_parameters(row, kind, fraction)),
                *map(_cell, cells),
            ]
        )
    head = ["method", "mean kept", "mean KL", "parameters", *table.domains]
    return f"{words[kind]}; per domain accuracy in % (interval), perplexity, KL.\n\n" + _table(head, rows)


def _cell(cell: Cell) -> str:
    accuracy = f"{100 * cell.accuracy.value:.1f} ({100 * cell.accuracy.low:.1f} to {100 * cell.accuracy.high:.1f})"
    return f"{accuracy}, {wording.number(cell.perplexity)}, {wording.number(cell.kl, 3)}"


def _other_table(table: ResultsTable, fraction: float) -> str:
    """Return plans by domains measured, for the compared row."""
    rows = [
        [
            made_for,
            *(
                _estimate(table.cell(table.compared, made_for, fraction, domain).kept)
                if table.has(table.compared, made_for, fraction, domain)
                else "\N{EN DASH}"
                for domain in table.domains
            ),
        ]
        for made_for in (*table.domains, MIXED)
    ]
    return (
        f"`{table.compared}` on every domain: a row is the domain the experts were kept for, a column the domain "
        "measured; share kept of the accuracy above chance.\n\n"
        + _table(["kept for", *table.domains], rows)
        + f"\nOverlap of the experts that `{table.compared}` keeps for each domain:\n\n"
        f"![overlap of kept experts]({_overlap_name(fraction)})\n"
    )


def _left_out_section(table: ResultsTable) -> str:
    if not table.left_out:
        return ""
    rows = [[f"`{each.row}`", each.reason.replace("|", "\\|")] for each in table.left_out]
    return "## Left out\n\n" + _table(["row", "reason"], rows)


def _overlap_name(fraction: float) -> str:
    return f"overlap-{round(100 * (1 - fraction))}.png"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _estimate(found: Estimate) -> str:
    interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}".replace("-", "\N{MINUS SIGN}")
    return f"{wording.percent(found.value)} ({interval if found.is_bounded else wording.MISSING})"


def _points(found: Estimate) -> str:
    value = wording.MISSING if math.isnan(found.value) else wording.points(found.value)
    return f"{value} ({wording.points_interval(found.low, found.high) if found.is_bounded else wording.MISSING})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
