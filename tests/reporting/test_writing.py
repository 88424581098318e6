"""What the report says of free writing."""

from dataclasses import replace

import pytest

from moe_compress.reporting.report import write_html
from moe_compress.reporting.writing import compare_writing, new_loops


def test_rows_are_means_over_the_same_prompts(report):
    rows = {row.task: row for row in compare_writing(report.baseline, report.candidate)}
    assert list(rows) == ["medical", "code", "math", "finance", "general"]
    # One of the candidate's four texts on code loops: 31 words beside three of 4 words.
    assert rows["code"].loops == (0, 0.25) and rows["code"].ended == (1, 0.75)
    assert rows["code"].length == pytest.approx((4, (3 * 4 + 32) / 4))
    assert rows["code"].repetition == pytest.approx((0, 0.225))
    assert rows["medical"].loops == (0, 0)


def test_only_loops_the_baseline_does_not_have_are_new(report):
    assert [(text.task, text.item) for text in new_loops(report.baseline, report.candidate)] == [("code", "0")]
    assert new_loops(report.candidate, report.candidate) == ()


def test_the_page_shows_loops_and_says_nothing_where_nothing_was_written(report, tmp_path):
    page = write_html(report, tmp_path / "with.html", {}).read_text()
    assert "Writing freely" in page and "0.0\N{NO-BREAK SPACE}% → 25.0\N{NO-BREAK SPACE}%" in page
    silent = replace(report, candidate=replace(report.candidate, written=()))
    assert "Writing freely" not in write_html(silent, tmp_path / "without.html", {}).read_text()
