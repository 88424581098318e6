"""Cosines, read back from what was drawn."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from moe_compress.reporting.content import CompressionReport
from moe_compress.reporting.figures.similarity import Scale, all_similarity, illustrate, layer_similarity, scale_of
from moe_compress.reporting.style import NARROW, PALETTE, WIDE
from moe_compress.types import Likeness, PlanBackground

BLUE, ORANGE = (np.array(to_rgb(PALETTE[name])) for name in ("candidate", "merged"))
LIKENESS = Likeness(
    order=((1, 0), (0, 1)),
    inside=(np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.25], [-0.25, 1.0]])),
    inside_block=1,
    across=np.array([[1.0, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, -0.25], [0, 0, -0.25, 1]]),
    across_block=1,
    mean_inside=(0.5, -0.25),
    nearest=(0.5, -0.25),
    mean_across=0.0,
)


def test_hue_is_the_sign_and_opacity_the_size() -> None:
    cells = Scale(-0.3, 0.5).shade(np.array([0.5, 0.0, -0.25, 0.9]))
    assert cells[:, 3] == pytest.approx([1, 0, 0.5, 1], abs=0.01)
    assert cells[0, :3] == pytest.approx(BLUE, abs=0.01) and cells[2, :3] == pytest.approx(ORANGE, abs=0.01)


def test_the_scale_holds_nearly_all_and_starts_at_nought_unless_all_is_far_from_it() -> None:
    assert scale_of(LIKENESS.inside) == Scale(pytest.approx(-0.3), pytest.approx(0.5))
    assert scale_of([np.array([[1.0, 0.42], [0.42, 1.0]])]) == Scale(pytest.approx(0.4), pytest.approx(0.5))
    assert scale_of([np.array([[1.0, 0.2], [0.2, 1.0]])]).low == 0
    assert scale_of([np.ones((1, 1))]) == Scale(0.0, 1.0)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_layer_has_its_square(width: float) -> None:
    axes = layer_similarity(LIKENESS, (3, 4), width).axes[0]
    image = np.asarray(axes.images[0].get_array())
    # Two squares of 2 by 2, a clear column after each; rows above hold the names.
    first, second = image[-3:-1, 0:2], image[-3:-1, 3:5]
    assert first[:, :, 3] == pytest.approx(np.ones((2, 2)), abs=0.01)  # 0.5 is the end of the scale
    assert second[:, :, 3] == pytest.approx(np.array([[1, 0.5], [0.5, 1]]), abs=0.01)
    assert (image[:, 2, 3] == 0).all()
    assert [text.get_text() for text in axes.texts] == ["layer 3, mean 0.50", "layer 4, mean -0.25"]


def test_layers_are_named_at_the_middle_of_their_experts() -> None:
    axes = all_similarity(LIKENESS, (3, 4)).axes[0]
    assert axes.get_xticks().tolist() == axes.get_yticks().tolist() == [0.5, 2.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "4"]
    assert np.asarray(axes.images[0].get_array()).shape == (4, 4, 4)


def test_the_captions_are_made_of_the_numbers(report: CompressionReport) -> None:
    layout = replace(report.plan.layout, layers=(3, 4), num_experts=(64, 64))
    first = {"groups": report.plan.groups[:2], "scores": report.plan.scores[:2]}
    plan = replace(report.plan, layout=layout, **first)
    inside, across = illustrate(replace(report, plan=plan, other_plans={}, background=PlanBackground(LIKENESS)))
    assert inside.means == (
        "Experts are most alike in layer 3 (mean cosine 0.50) and least in layer 4 (\N{MINUS SIGN}0.25); the one "
        "most like an expert is at 0.12 on average: few could stand in for another."
    )
    assert across.means.endswith("0.12, two of different layers 0.00: experts are alike only inside their layer.")


def test_nothing_is_drawn_of_what_was_not_collected(report: CompressionReport) -> None:
    assert list(illustrate(replace(report, background=PlanBackground()))) == []
