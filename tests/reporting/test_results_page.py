"""The page of method results says what the numbers say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.reporting.made_up_results import make_table, measured

from moe_compress.reporting.papers import judge_claims
from moe_compress.reporting.results_page import Background, summarise, write_results_page
from moe_compress.reporting.wording import MISSING

COMMAND = "kedro run --pipelines=results --params=results.benchmark_limit=200"
BACKGROUND = Background(7_800_000, 4, 56, 4, 200, None, COMMAND)


@pytest.fixture
def page(tmp_path):
    files = write_results_page(make_table(), BACKGROUND, tmp_path / "methods.md")
    assert all(file.stat().st_size > 300 for file in files)
    assert {file.name for file in files} == {
        "methods.md",
        "methods.csv",
        "methods-kept.png",
        "methods-kl.png",
        "overlap-50.png",
    }
    return (tmp_path / "methods.md").read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_has_both_kinds_of_plans_and_what_is_left_out(page: str) -> None:
    lines = page.splitlines()
    assert "(7.80 M parameters, 4 layers of 56 experts, 4 per token)" in page
    assert any(line.startswith("| `easy_ep` | 90.0 % (") for line in lines)
    assert any(line.startswith("| `easy_ep` | 60.0 % (") for line in lines)
    assert any(line.startswith("| `hc_smoe` (merges) | 30.0 % (") for line in lines)
    assert any(line.startswith("| medical | 80.0 % (") and " | 20.0 % (" in line for line in lines)
    assert "| `reconstruct, mixed` | ranks do not add |" in lines


def test_the_page_says_how_to_make_it_and_where_its_numbers_are(tmp_path) -> None:
    files = write_results_page(make_table(), BACKGROUND, tmp_path / "mine.md")
    page = files[0].read_text()
    assert f"Made by `{COMMAND}` (" in page and "over 200 held-out four-way questions a domain" in page
    assert "[CSV](mine.csv)" in page and files[1].name == "mine.csv"


def test_the_papers_ranks_stand_beside_ours(page: str) -> None:
    assert "| `easy_ep` | 66.55 | 1 | 99.0 % | 1 | 90.0 % (" in page
    assert "| `random` | 17.44 | 5 | 26.0 % | 2 | 10.0 % (" in page
    assert "| `gating_score` | 56.49 | 2 | 84.1 % | \N{EN DASH} | \N{EN DASH} |" in page


def test_the_summary_follows_the_numbers() -> None:
    table = make_table()
    summary = " ".join(summarise(table, judge_claims(table))).replace("\N{NO-BREAK SPACE}", " ")
    assert "**50 % dropped:** `easy_ep` keeps most, 90.0 % (" in summary
    assert "all others keep less" in summary
    assert "`random` keeps least, 10.0 % (" in summary
    assert "`easy_ep` changes by \N{MINUS SIGN}30.0 (" in summary
    assert "50 %: `hc_smoe` \N{MINUS SIGN}60.0 (" in summary
    assert "50 %: `easy_ep` (0.1)" in summary
    # With the answers of merging and pruning exchanged, the sentences change sides.
    exchanged = {"easy_ep": "hc_smoe", "hc_smoe": "easy_ep"}
    found = {
        (key._replace(row=exchanged.get(key.row, key.row)), domain): value
        for (key, domain), value in table.found.items()
        if key.made_for == domain
    }
    plans = {key: plan for key, plan in table.plans.items() if key.made_for != "mixed"}
    other = replace(table, found=found, plans=plans, _means={})
    summary = " ".join(summarise(other, judge_claims(other))).replace("\N{NO-BREAK SPACE}", " ")
    assert "`hc_smoe` keeps most, 90.0 % (" in summary
    assert "50 %: `hc_smoe` +60.0 (" in summary


def test_a_base_barely_above_chance_leaves_no_method_clearly_best() -> None:
    """Some draws have the base at chance, where the share kept is not defined; that never makes a method sure."""
    table = make_table()
    weak = replace(table, base={**table.base, "math": measured(60)}, _means={})
    draws_R = weak.kept("easy_ep", "own", 0.5, "math")
    assert np.isnan(draws_R).mean() > 0.025 and not np.isnan(draws_R[0])
    summary = " ".join(summarise(weak, judge_claims(weak)))
    assert "nan" not in summary and "inf" not in summary
    assert "`easy_ep` keeps most" in summary and "all others keep less" not in summary
    assert "`hc_smoe`, `random` cannot be told from it" in summary


def test_a_base_that_guesses_is_said_and_nothing_is_ranked(tmp_path) -> None:
    table = make_table()
    guessing = replace(table, base={**table.base, "math": measured(50)}, _means={})
    write_results_page(guessing, BACKGROUND, tmp_path / "methods.md")
    page = (tmp_path / "methods.md").read_text()
    assert "the base model answers no better than guessing on math." in page and "keeps most" not in page
    assert "nan" not in page and "inf" not in page.replace("info", "")
    assert f"| `easy_ep` | {MISSING} ({MISSING}) |" in page
