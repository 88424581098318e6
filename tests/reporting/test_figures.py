"""What the figures show, read back from what was drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_compress.errors import PlanError
from moe_compress.reporting import figures
from moe_compress.reporting.content import CompressionReport
from moe_compress.types import CompressionPlan, ExpertGroup, MoELayout, pruning_groups

KEPT, MERGED, DROPPED = (np.array(figures.to_rgb(figures.PALETTE[n])) for n in ("candidate", "merged", "baseline"))


def drawn_cells(plan: CompressionPlan) -> np.ndarray:
    return np.asarray(figures.kept_experts(plan).axes[0].images[0].get_array())


def test_every_cell_has_the_colour_of_its_state() -> None:
    layout = MoELayout(layers=(3,), num_experts=(5,), top_k=1)
    groups = ((ExpertGroup((0,)), ExpertGroup((1, 4), (0.5, 0.5))),)
    plan = CompressionPlan(layout, groups, "c_prune", np.array([[1.0, 5.0, 2.0, 0.0, 3.0]]))
    cells = drawn_cells(plan)[0]
    for cell, colour in zip(cells, (KEPT, MERGED, DROPPED, DROPPED, MERGED), strict=True):
        assert cell[:3] == pytest.approx(colour, abs=0.01)
    assert cells[1, 3] > cells[4, 3]  # score 5 beside score 3


def test_cells_agree_with_the_plan(report: CompressionReport) -> None:
    cells = drawn_cells(report.plan)
    for layer, kept in enumerate(report.plan.kept):
        blue = np.flatnonzero(np.abs(cells[layer, :, :3] - KEPT).max(axis=1) < 0.01)
        assert tuple(blue) == kept


def test_experts_a_layer_does_not_have_stay_clear() -> None:
    layout = MoELayout(layers=(0, 1), num_experts=(4, 2), top_k=1)
    plan = CompressionPlan(layout, (pruning_groups((0,)), pruning_groups((1,))), "random")
    assert (drawn_cells(plan)[1, 2:, 3] == 0).all()
    assert [label.get_text() for label in figures.kept_experts(plan).axes[0].get_yticklabels()] == [
        "layer 0",
        "layer 1",
    ]


def test_layers_that_differ_are_labelled_with_their_number(report: CompressionReport) -> None:
    uneven = replace(report.plan, groups=(report.plan.groups[0][:24], *report.plan.groups[1:]))
    labels = [label.get_text() for label in figures.kept_experts(uneven).axes[0].get_yticklabels()]
    assert labels == ["layer 1: 24", "layer 2: 32", "layer 3: 32", "layer 4: 32"]


def test_score_cut_draws_each_expert_once_on_its_side(report: CompressionReport) -> None:
    axes = figures.score_cut(report.plan).axes[0]
    dropped, kept = axes.collections[0].get_offsets(), axes.collections[1].get_offsets()
    assert len(dropped) == len(kept) == 32
    assert kept[:, 0].max() < dropped[:, 0].min()  # the plan keeps the best, so ranks do not mix
    assert "32 kept" in [text.get_text() for text in axes.texts]


def test_score_cut_without_scores_is_refused(report: CompressionReport) -> None:
    with pytest.raises(PlanError, match="'easy_ep' has no scores"):
        figures.score_cut(replace(report.plan, scores=None))


def test_equal_scores_can_be_drawn(report: CompressionReport) -> None:
    flat = replace(report.plan, scores=np.ones((4, 64)))
    assert np.isfinite(drawn_cells(flat)).all()
    figures.score_cut(flat).canvas.draw()


def test_quality_bars_are_the_accuracies(report: CompressionReport) -> None:
    left, right = figures.quality_bars(report).axes
    widths = [patch.get_width() for patch in left.patches]
    assert widths[:5] == pytest.approx([80.0] * 5)
    assert widths[5:] == pytest.approx([79.0, 79.0, 74.0, 61.333, 69.333], abs=0.001)
    assert right.texts[0].get_text() == "\N{MINUS SIGN}1.0"


def test_overlap_matrix_writes_percentages(report: CompressionReport) -> None:
    texts = [text.get_text() for text in figures.overlap_matrix(report.plans).axes[0].texts]
    assert len(texts) == 25
    assert texts[0] == texts[6] == "100"


def test_save_figures_writes_png_and_nothing_else(report: CompressionReport, tmp_path: Path) -> None:
    paths = figures.save_figures(report, tmp_path / "new")
    assert [path.name for path in paths] == [
        "kept_experts.png",
        "score_cut.png",
        "quality.png",
        "demonstrations.png",
        "overlap.png",
    ]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_bare_report_has_the_one_figure_it_can(report: CompressionReport, tmp_path: Path) -> None:
    bare = replace(report, plan=replace(report.plan, scores=None), comparisons={}, agreement=None, other_plans={})
    assert [path.name for path in figures.save_figures(bare, tmp_path)] == ["kept_experts.png"]


def test_svg_is_the_same_each_time_and_follows_the_pages_colours(report: CompressionReport) -> None:
    first, again = (figures.as_svg(figures.quality_bars(report), "quality") for _ in range(2))
    assert first == again
    assert "var(--candidate)" in first
    assert not any(code in first for code in figures.PALETTE.values())


def test_palette_colours_are_different() -> None:
    assert len(set(figures.PALETTE.values())) == len(figures.PALETTE)


def test_long_names_leave_room_for_the_figure(report: CompressionReport) -> None:
    name = "a_task_with_a_very_long_name" * 4
    long = replace(report, comparisons={name: replace(report.comparisons["code"], task=name)})
    for width in (figures.WIDE, figures.NARROW):
        figure = figures.quality_bars(long, width)
        figure.canvas.draw()
        assert figure.axes[0].get_position().width > 0.25
        assert figure.axes[0].get_yticklabels()[0].get_text() == "a_task_with_a_ver\N{HORIZONTAL ELLIPSIS}"


def test_text_with_dollars_is_not_mathematics(report: CompressionReport) -> None:
    names = {"$\\frac{": report.plan, "b": report.other_plans["code"]}
    figures.overlap_matrix(names).canvas.draw()
