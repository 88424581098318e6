"""The table's figures worked by hand, and its intervals against a plain bootstrap."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from tests.reporting.made_up_results import ITEMS, make_table, measured

from moe_compress.reporting.results_csv import COLUMNS, as_csv
from moe_compress.reporting.results_table import NUM_DRAWS, Estimate


def test_share_kept_is_of_what_is_above_chance() -> None:
    table = make_table()
    # (130/200 - 1/4) / (150/200 - 1/4), and the mean with (150/200 - 1/4) / (150/200 - 1/4)
    assert table.cell("easy_ep", "medical", 0.5, "medical").kept.value == pytest.approx(0.8)
    assert table.mean_kept("easy_ep", "own", 0.5)[0] == pytest.approx(0.9)
    assert table.mean_kept("easy_ep", "mixed", 0.5)[0] == pytest.approx(0.6)
    assert table.mean_kl("hc_smoe", "own", 0.5) == pytest.approx(2.0)


def test_seeds_are_averaged() -> None:
    cell = make_table().cell("random", "math", 0.5, "math")
    assert cell.accuracy.value == pytest.approx((50 + 70) / 2 / ITEMS)
    assert cell.kept.value == pytest.approx(0.1)
    assert cell.kl == pytest.approx(4.5)


def test_rows_come_best_first_and_only_where_every_domain_has_one() -> None:
    table = make_table()
    assert table.rows("own", 0.5) == ["easy_ep", "hc_smoe", "random"]
    assert table.rows("mixed", 0.5) == ["easy_ep"]
    assert table.merges("hc_smoe") and not table.merges("easy_ep")


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    table = make_table()
    cell = table.cell("easy_ep", "medical", 0.5, "medical")
    rng = np.random.default_rng(3)
    right = np.array(table.found[next(key for key in table.found if key[1] == "medical")].right)
    drawn = [right[rng.integers(0, ITEMS, ITEMS)].mean() for _ in range(NUM_DRAWS)]
    assert cell.accuracy.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.01)
    assert cell.accuracy.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.01)


def test_comparisons_are_paired() -> None:
    """Rows that answer the same items rightly differ by nothing in every draw, however wide their own intervals."""
    table = make_table()
    key = next(key for key in table.plans if key.row == "hc_smoe" and key.made_for == "medical")
    same = replace(table, found={**table.found, (key, "medical"): measured(130)}, _means={})
    gap = same.kept("easy_ep", "own", 0.5, "medical") - same.kept("hc_smoe", "own", 0.5, "medical")
    assert np.all(gap == 0)
    assert Estimate.of(same.kept("easy_ep", "own", 0.5, "medical")).low < 0.75


def test_a_base_that_only_guesses_has_no_share_to_keep() -> None:
    table = make_table()
    base = {**table.base, "math": measured(50)}
    guessing = replace(table, base=base, _means={})
    kept = guessing.cell("easy_ep", "math", 0.5, "math").kept
    assert np.isnan(kept.value) and not kept.is_bounded and guessing.guessed == ("math",)
    assert ",0.75000,0.69000,0.81000,,,," in as_csv(guessing)


def test_a_draw_that_is_not_defined_counts_at_both_ends() -> None:
    draws_R = np.concatenate([[0.5], np.linspace(0, 1, 1001)])
    known = Estimate.of(draws_R)
    assert known == pytest.approx((0.5, 0.025, 0.975))
    # 11 of 1,001 draws may be anything, so that many fewer are left below the lower end and above the upper.
    draws_R[500:511] = np.nan
    assert Estimate.of(draws_R) == pytest.approx((0.5, 0.014, 0.986))
    draws_R[500:540] = np.nan
    assert Estimate.of(draws_R) == (0.5, -np.inf, np.inf)


def test_the_csv_has_a_line_for_every_measurement() -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(make_table()))))
    assert tuple(lines[0]) == COLUMNS
    # 2 of the base; easy_ep 2 own, 2 on the other domain, 2 mixed; hc_smoe 2; random 2, its seeds averaged.
    assert len(lines) == 12
    (line,) = [x for x in lines if (x["row"], x["made_for"], x["measured_on"]) == ("easy_ep", "mixed", "math")]
    assert (float(line["accuracy"]), float(line["kept"]), line["num_parameters"]) == (0.55, 0.6, "600")
