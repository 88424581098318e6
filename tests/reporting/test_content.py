"""What a report concludes from its values, and what it refuses to hold together."""

import math
from dataclasses import replace

import numpy as np
import pytest

from moe_compress.errors import EvaluationError, PlanError
from moe_compress.pipelines.report import metrics_of
from moe_compress.reporting.content import (
    CompressionReport,
    FlippedItem,
    measure_overlap,
    share_of_score_kept,
)
from moe_compress.types import (
    CompressionPlan,
    ExpertGroup,
    GateReport,
    Measurements,
    MoELayout,
    Speed,
    Throughput,
    pruning_groups,
)

SMALL = MoELayout(layers=(0, 1), num_experts=(4, 4), top_k=1)


def small_plan(*kept: tuple[int, ...], scores: list[list[float]] | None = None) -> CompressionPlan:
    scores_LE = None if scores is None else np.array(scores)
    return CompressionPlan(SMALL, tuple(pruning_groups(row) for row in kept), "reap", scores_LE)


def test_overlap_is_the_share_of_the_rows_experts_worked_by_hand() -> None:
    # a keeps (0:0, 0:1, 1:2), b keeps (0:1, 1:2, 1:3, 0:2): they share 0:1 and 1:2.
    plans = {"a": small_plan((0, 1), (2,)), "b": small_plan((1, 2), (2, 3))}
    assert measure_overlap(plans) == pytest.approx(np.array([[1, 2 / 3], [2 / 4, 1]]))


def test_overlap_of_plans_for_different_layouts_is_refused(report: CompressionReport) -> None:
    with pytest.raises(PlanError, match=r"plan 'small' is for another layout \(2 layers\).*\(4 layers\)"):
        measure_overlap({"medical": report.plan, "small": small_plan((0,), (1,))})
    with pytest.raises(PlanError, match="'small'"):
        replace(report, other_plans={"small": small_plan((0,), (1,))})


def timed(speed: float, spread: float) -> Throughput:
    return Throughput(1.0, 1, "process", {1: Speed(1.0), 8: Speed(speed, spread)}, {}, yardstick=100.0)


def test_a_change_of_speed_is_told_only_where_equal_models_would_not_differ_as_much(
    report: CompressionReport,
) -> None:
    def change(*speeds: Throughput) -> str:
        return replace(report, speeds=speeds).speed_change.replace("\N{NO-BREAK SPACE}", " ")

    assert change(timed(100.0, 0.1), timed(150.0, 0.2)) == "+50.0 %"
    assert change(timed(100.0, 0.1), timed(150.0, 0.6)) == "within noise of 76 %"
    assert change(timed(150.0, 0.6), timed(100.0, 0.1)) == "within noise of 76 %"
    assert change(timed(100.0, 0.0), timed(150.0, 0.0)) == "+50.0 %"
    busier = replace(timed(50.0, 0.0), yardstick=40.0)  # it took 2.5 times as long for the same
    assert change(timed(100.0, 0.0), busier) == "within noise of 150 %"


def test_share_of_score_kept_worked_by_hand() -> None:
    # Layer 0 keeps 5 + 3 of 10, layer 1 keeps 1 of 4.
    plan = small_plan((0, 2), (3,), scores=[[5, 1, 3, 1], [1, 1, 1, 1]])
    assert share_of_score_kept(plan) == pytest.approx((0.8, 0.25))


@pytest.mark.parametrize("scores", [None, [[5, 1, 3, -1], [1, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]]])
def test_share_of_score_kept_is_none_where_it_means_nothing(scores: list[list[float]] | None) -> None:
    assert share_of_score_kept(small_plan((0, 2), (3,), scores=scores)) is None


def test_share_of_score_kept_ignores_the_padding_of_shorter_layers() -> None:
    layout = MoELayout(layers=(0, 1), num_experts=(4, 2), top_k=1)
    groups = (pruning_groups((0,)), pruning_groups((1,)))
    scores = np.array([[1.0, 1, 1, 1], [1, 3, np.nan, np.nan]])
    assert share_of_score_kept(CompressionPlan(layout, groups, "reap", scores)) == pytest.approx((0.25, 0.75))


def test_merged_members_count_as_kept() -> None:
    groups = ((ExpertGroup((0, 3), (0.5, 0.5)),), (ExpertGroup((1,)),))
    merged = CompressionPlan(SMALL, groups, "c_prune")
    assert measure_overlap({"m": merged, "p": small_plan((3,), (1,))})[0, 1] == pytest.approx(2 / 3)


def test_gates_of_another_domain_are_refused(report: CompressionReport) -> None:
    with pytest.raises(EvaluationError, match=r"'medical'.*'finance'"):
        replace(report, gate_report=replace(report.gate_report, domain="finance"))


def test_flip_outside_its_choices_is_refused() -> None:
    with pytest.raises(EvaluationError, match="choice 4 of 4"):
        FlippedItem("math", "1 + 1?", ("1", "2", "3", "4"), 1, 1, 4)


def test_the_target_domain_comes_first(report: CompressionReport) -> None:
    rows = report.quality_rows
    assert [row.name for row in rows] == ["medical", "general", "finance", "math", "code"]
    assert [row.is_target for row in rows] == [True, False, False, False, False]


def test_a_perplexity_without_benchmark_has_its_row(report: CompressionReport) -> None:
    alone = replace(report, comparisons={})
    assert [row.comparison for row in alone.quality_rows] == [None] * 5
    assert alone.quality_rows[0].candidate_perplexity == 6.488
    assert "Accuracy" not in alone.summary


@pytest.mark.parametrize("targets", [("math", "medical"), ("medical", "math")])
def test_a_domain_that_kept_no_finite_share_is_the_worst_of_a_mixtures(
    report: CompressionReport, targets: tuple[str, ...]
) -> None:
    comparisons = {name: replace(each, share_kept=0.5) for name, each in report.comparisons.items()}
    comparisons["math"] = replace(comparisons["math"], share_kept=math.nan)
    mixture = replace(report, targets=targets, comparisons=comparisons)
    assert mixture.summary.startswith("Of 2 domains math kept least.")


def test_headlines(report: CompressionReport, failed_report: CompressionReport) -> None:
    clean = tuple(outcome for outcome in report.gate_report.outcomes if outcome.passed)
    assert report.headline == "Passed 5 of 6 gates, with 1 warning"
    assert replace(report, gate_report=GateReport("medical", clean)).headline == "Passed all 5 gates"
    assert failed_report.headline == "Failed 1 of 6 gates"
    nothing = replace(report, gate_report=GateReport("medical", ()))
    assert nothing.headline == "Not validated: no gates were run"


def test_experts_change_gives_a_range_where_layers_differ(report: CompressionReport) -> None:
    assert report.experts_change == ("64", "32")
    groups = (report.plan.groups[0][:24], *report.plan.groups[1:])
    assert replace(report, plan=replace(report.plan, groups=groups)).experts_change == ("64", "24 to 32")


def test_mlflow_is_told_what_is_a_finite_number(report: CompressionReport) -> None:
    measured = Measurements(
        {
            "accuracy.aime24": 0.25,
            "share_kept.aime24": math.nan,
            "share_kept.aime24.low": -math.inf,
            "size_ratio": 0.5,
        },
        {"accuracy.aime24": 0.0, "load_seconds": math.nan},
    )
    assert metrics_of(replace(report, measured=measured)) == {
        "baseline.accuracy.aime24": 0.0,
        "candidate.accuracy.aime24": 0.25,
        "size_ratio": 0.5,
    }
