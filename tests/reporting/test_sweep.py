"""The sweep's figure, its lines, and its place in the report."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from moe_compress.reporting.figures import illustrate
from moe_compress.reporting.figures.drawing import as_svg
from moe_compress.reporting.report import write_html
from moe_compress.reporting.style import NARROW, WIDE
from moe_compress.reporting.sweep import as_lines, describe_check, describe_fate, save_figure, sweep_figure
from moe_compress.types import SweepCheck, SweepEntry, SweepResult

FAILURE = "domain_accuracy_kept is 0.41, must be at least 0.8"


def make_entry(method, fraction, right, **overrides):
    measured = {"kl.domain": fraction, "kl.medical": fraction, "perplexity_ratio.domain": 1 + fraction}
    interval = (right / 300 - 0.05, right / 300 + 0.05)
    entry = SweepEntry(method, fraction, (32,) * 4, "d" * 64, 1 - 0.7 * fraction, 300, right, interval, measured)
    return replace(entry, **overrides)


ENTRIES = (
    make_entry("easy_ep", 0.25, 235),
    make_entry("frequency", 0.25, 60, num_items=75, num_right=15, measured={}, dropped_for="easy_ep"),
    make_entry("easy_ep", 0.5, 210),
    make_entry("reap<b>", 0.75, 120, failures=(FAILURE,)),
)


@pytest.fixture(scope="module")
def result():
    return SweepResult(
        domain="medical",
        base_right=240,
        num_items=300,
        base_interval=(0.75, 0.84),
        chance=0.25,
        entries=ENTRIES,
        skipped={"hc_smoe at 0.5": "it merges"},
        not_judged=("no_missing_keys",),
        chosen=2,
        check=SweepCheck(300, 1, 0.002),
    )


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("chosen", [2, None])
def test_every_plan_the_base_and_the_choice_are_drawn(result, width, chosen):
    figure = sweep_figure(replace(result, chosen=chosen, check=None), width)
    (axes,) = figure.axes
    drawn = [tuple(point) for line in axes.lines for point in line.get_xydata().tolist()]
    drawn += [tuple(point) for dots in axes.collections[:1] for point in dots.get_offsets().tolist()]
    places = {(100 * entry.size_ratio, 100 * entry.accuracy) for entry in ENTRIES} | {(100, 80)}
    assert places <= set(drawn)
    texts = [text.get_text() for text in axes.texts]
    assert texts == (["easy_ep, 50 % dropped"] if chosen is not None else [])


def test_the_figure_is_written(result, tmp_path):
    save_figure(result, tmp_path / "deep" / "sweep.png")
    assert (tmp_path / "deep" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_lines_name_the_choice_and_what_became_of_each(result):
    lines = as_lines(result)
    assert lines[0].startswith("sweep of medical: the base model answers 80.0") and "of 300" in lines[0]
    (chosen,) = [line for line in lines if line.startswith("*")]
    assert "easy_ep" in chosen and "50% dropped" in chosen and chosen.endswith("passes")
    assert any(line.endswith("given up after 75 items: easy_ep is clearly better") for line in lines)
    assert any(line.endswith(FAILURE) for line in lines) and "  not tried: hc_smoe at 0.5: it merges" in lines
    assert describe_check(result) == lines[-1] and "answers 299 of 300 items" in lines[-1]
    assert "none was written" in describe_check(replace(result, chosen=None, check=None))
    assert describe_fate(ENTRIES[0]) == "passes"


def test_the_report_of_a_run_that_took_the_choice_shows_it(report, result, tmp_path):
    taken = replace(report, sweep=result)
    drawn = {figure.name: figure for figure in illustrate(taken)}
    assert isinstance(drawn["sweep"].draw(WIDE), Figure)
    assert "easy_ep with 50 % of the experts dropped" in drawn["sweep"].means
    page = write_html(taken, tmp_path / "report.html").read_text()
    assert "Why this plan: the sweep" in page and "answers 299 of 300 items" in page
    assert "reap&lt;b&gt;" in page and "reap<b>" not in page
    assert "Gates a mask says nothing about: no_missing_keys." in page
    assert "Why this plan" not in write_html(report, tmp_path / "other.html", {}).read_text()
    assert "sweep" not in {figure.name for figure in illustrate(report)}
    assert as_svg(drawn["sweep"].draw(NARROW), "sweep").startswith("<svg")
