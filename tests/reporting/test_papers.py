"""The papers' figures are those of the papers, and a statement is judged by the whole interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.reporting.made_up_results import make_table

from moe_compress import methods
from moe_compress.reporting.papers import CLAIMS, TABLES, decide, judge_claims
from moe_compress.reporting.results_table import Estimate

ROOT = Path(__file__).parents[2]


def test_the_papers_averages_are_the_means_of_their_columns() -> None:
    r1_half = [79.17, 68.33, 45.31, 61.11, 70.12, 91.67, 78.80, 37.92]
    assert TABLES[0].averages["easy_ep"] == pytest.approx(np.mean(r1_half), abs=0.01)
    v3_mixed = {
        "easy_ep": [57.81, 46.56, 33.33, 40.72, 64.95, 85.00, 72.26, 38.74],
        "gating_score": [53.75, 40.10, 27.19, 28.74, 58.88, 83.86, 67.74, 34.58],
        "frequency": [51.35, 37.60, 24.27, 17.07, 55.90, 83.47, 66.80, 36.25],
        "m_smoe": [43.33, 30.00, 20.00, 7.19, 52.53, 82.33, 62.20, 29.17],
    }
    mixed = next(table for table in TABLES if "V3" in table.title and table.kind == "mixed")
    assert mixed.averages == {row: pytest.approx(np.mean(scores), abs=0.011) for row, scores in v3_mixed.items()}
    quarter = {
        "easy_ep": [72.81, 55.33, 36.00, 42.51, 67.47, 27.26],
        "easy_ep_without_token": [65.33, 49.33, 31.33, 27.54, 56.57, 21.53],
        "easy_ep_without_norm": [70.00, 40.00, 23.33, 19.76, 61.11, 18.75],
    }
    for claim in CLAIMS:
        if "six benchmarks" in claim.reported and claim.over:
            expected = f"{np.mean(quarter['easy_ep']):.2f} against {np.mean(quarter[claim.over[0]]):.2f}"
            assert claim.reported.startswith(expected)


def test_every_row_that_is_spoken_of_is_in_our_table() -> None:
    rows = {row for table in TABLES for row in table.averages}
    rows |= {claim.row for claim in CLAIMS} | {claim.over[0] for claim in CLAIMS if claim.over}
    conf = yaml.safe_load((ROOT / "conf/base/parameters_results.yml").read_text())["results"]
    assert rows <= {*methods.available(), *conf["rows"]}


def test_seer_prune_is_the_row_that_ranks_over_all_layers() -> None:
    of_c_prune = [table for table in TABLES if table.title.startswith("C-Prune")]
    assert len(of_c_prune) == 2
    assert all("seer_global" in table.averages and "seer" not in table.averages for table in of_c_prune)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "holds"), (-0.2, -0.01, "does not hold"), (-0.1, 0.1, "open")],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert decide(Estimate((low + high) / 2, low, high), 0) == verdict
    assert decide(Estimate((low + high) / 2 + 0.9, low + 0.9, high + 0.9), 0.9) == verdict


def test_claims_are_judged_where_the_table_has_their_rows() -> None:
    judged = {(each.claim.text, each.claim.source): each for each in judge_claims(make_table())}
    ours = next(each for each in judged.values() if each.claim.over == ("easy_ep", "mixed"))
    # 90 % for one domain against 60 % mixed
    assert ours.ours.value == pytest.approx(0.3)
    assert ours.verdict == "holds"
    other = next(
        each for each in judged.values() if each.claim.over == ("easy_ep", "own") and each.claim.kind == "mixed"
    )
    assert (other.ours.value, other.verdict) == (pytest.approx(-0.3), "does not hold")
    nearly_all = next(each for each in judged.values() if each.claim.at_least == 0.95)
    assert nearly_all.ours.value == pytest.approx(0.9)
    assert not any(each.claim.row == "c_prune" for each in judged.values())
