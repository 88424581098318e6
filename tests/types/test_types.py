"""Values are valid once built: each way they can be wrong is refused, and sums add."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress.errors import DataError, EvaluationError, PlanError, StatisticsError
from moe_compress.types import (
    CompressionPlan,
    Demonstrations,
    EvaluationResult,
    ExpertGroup,
    ExpertStatistics,
    GateOutcome,
    GateReport,
    ItemResult,
    MoELayout,
    as_json,
    digest_of,
    pruning_groups,
)

LAYOUT = MoELayout((1, 2), (4, 4), 2)


def statistics(domain="toy", tokens=6, **sums):
    counts = np.full((2, 4), tokens * 2 / 4)
    return ExpertStatistics(domain, LAYOUT, {"count": counts, **sums}, tokens)


def plan(*kept, layout=LAYOUT):
    return CompressionPlan(layout, tuple(pruning_groups(row) for row in kept), "by_hand")


def test_statistics_add():
    total = statistics(tokens=6, gate=np.ones((2, 4))) + statistics(tokens=2, gate=np.full((2, 4), 0.5))
    assert total.num_tokens == 8
    np.testing.assert_array_equal(total["count"], np.full((2, 4), 4.0))
    np.testing.assert_array_equal(total["gate"], np.full((2, 4), 1.5))


def test_statistics_of_two_domains_name_both():
    assert (statistics("medical") + statistics("math")).domain == "medical+math"


def test_order_of_addition_does_not_matter():
    a, b = statistics("a", gate=np.ones((2, 4))), statistics("b", gate=np.full((2, 4), 2.0))
    np.testing.assert_array_equal((a + b)["gate"], (b + a)["gate"])


def test_statistics_with_other_sums_do_not_add():
    with pytest.raises(StatisticsError, match="do not add"):
        statistics() + statistics(gate=np.ones((2, 4)))


def test_sums_of_other_shapes_do_not_add():
    one, three = (statistics(pooled_gram=np.ones((2, 4, batches, 2, 4))) for batches in (1, 3))
    with pytest.raises(
        StatisticsError, match=r"'pooled_gram' .* \[2, 4, 1, 2, 4\] and \[2, 4, 3, 2, 4\]; add shards"
    ):
        one + three


def test_counts_must_be_tokens_times_top_k():
    with pytest.raises(StatisticsError, match=r"layer 1 counted 4 routed tokens .* 6 tokens times top_k=2 is 12"):
        ExpertStatistics("toy", LAYOUT, {"count": np.ones((2, 4))}, 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.ones((3, 4)), r"shape \[3, 4\]"), (np.full((2, 4), np.nan), "NaN or infinity")],
)
def test_broken_sums_are_refused(values, message):
    with pytest.raises(StatisticsError, match=message):
        statistics(gate=values)


@pytest.mark.parametrize(
    ("layers", "counts", "message"),
    [
        ((), (), "one expert count per layer"),
        ((0, 1), (4,), "one expert count"),
        ((0,), (1,), r"top_k=2 .* in config\.json$"),
    ],
)
def test_layouts_that_cannot_be(layers, counts, message):
    with pytest.raises(PlanError, match=message):
        MoELayout(layers, counts, 2)


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_router_that_picks_nothing_cannot_be(top_k):
    with pytest.raises(PlanError, match=f"top_k={top_k}, and a router picks at least 1"):
        MoELayout((0,), (4,), top_k)


def test_a_plan_knows_what_stays():
    made = plan([3, 1], [0, 2])
    assert made.kept == ((1, 3), (0, 2))
    assert made.new_layout.num_experts == (2, 2)
    assert made.is_pruning and made.new_layout.is_uniform


def test_a_plan_that_merges_is_not_pruning():
    groups = ((ExpertGroup((0, 1), (0.5, 0.5)), ExpertGroup((2,))), pruning_groups([0, 1]))
    assert not CompressionPlan(LAYOUT, groups, "by_hand").is_pruning


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (([0], [0, 1]), "layer 1 would keep 1 experts"),
        (([0, 4], [0, 1]), "outside 0..3"),
        (([0, 0], [0, 1]), "twice"),
        (([0, 1],), "covers 1 layers"),
    ],
)
def test_plans_that_do_not_fit(kept, message):
    with pytest.raises(PlanError, match=message):
        plan(*kept)


GROUPED = MoELayout((1, 2), (8, 8), 2, num_groups=2, topk_groups=1)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([0, 1, 4], r"layer 1 would keep \[2, 1\] experts of the router's 2 groups"),
        ([0, 4, 5], "keep the same number of each"),
        ([0, 1, 2, 4], "keep the same number of each"),
        ([0, 4], "1 experts per group, but the router needs at least 2"),
    ],
)
def test_router_groups_stay_equal(kept, message):
    with pytest.raises(PlanError, match=message):
        plan(kept, [0, 1, 4, 5], layout=GROUPED)


def test_a_token_finds_top_k_experts_in_its_groups():
    layout = MoELayout((1,), (8,), 3, num_groups=2, topk_groups=1)
    with pytest.raises(PlanError, match=r"2 experts per group, .* top_k=3 in the 1 groups a token may use"):
        plan([0, 1, 4, 5], layout=layout)
    assert plan([0, 1, 2, 5, 6, 7], layout=layout).new_layout.num_experts == (6,)


@pytest.mark.parametrize("members", [(0, 4), (5, 4)])
def test_merging_stays_inside_a_router_group(members):
    groups = (ExpertGroup(members, (0.5, 0.5)), ExpertGroup((1,)), ExpertGroup((6,)), ExpertGroup((7,)))
    with pytest.raises(PlanError, match="merge inside groups only"):
        CompressionPlan(GROUPED, (groups, groups), "by_hand")


def test_giving_the_groups_up_is_another_plan():
    kept = pruning_groups([0, 1, 4, 5])
    balanced = CompressionPlan(GROUPED, (kept, kept), "by_hand")
    flat = CompressionPlan(GROUPED, (kept, kept), "by_hand", router_groups="flatten")
    assert (balanced.new_layout.num_groups, balanced.new_layout.topk_groups) == (2, 1)
    assert flat.new_layout == MoELayout((1, 2), (4, 4), 2)
    assert flat.digest != balanced.digest
    uneven = CompressionPlan(GROUPED, (pruning_groups([0, 1, 2]),) * 2, "by_hand", router_groups="flatten")
    assert uneven.new_layout.num_experts == (3, 3)


@pytest.mark.parametrize(("groups", "chosen"), [(3, 1), (2, 3), (2, 0)])
def test_layouts_whose_groups_cannot_be(groups, chosen):
    with pytest.raises(PlanError, match="the router needs equal groups"):
        MoELayout((0,), (8,), 2, groups, chosen)


def test_a_group_needs_a_weight_each():
    with pytest.raises(PlanError, match="one weight per member"):
        ExpertGroup((0, 1), (1.0,))


def test_a_plans_digest_is_what_it_does_not_who_chose():
    made = plan([0, 1], [0, 1])
    assert made.digest == CompressionPlan(LAYOUT, made.groups, "other", np.ones((2, 4))).digest
    assert made.digest != plan([0, 2], [0, 1]).digest


def test_demonstrations_are_never_none():
    with pytest.raises(DataError, match="no demonstrations"):
        Demonstrations("medical", (), (), "0")


def result(items):
    return EvaluationResult("model", tuple(items), {}, 1, 1)


def test_accuracy_counts_right_answers():
    found = result(ItemResult("quiz", str(i), (0.0, -1.0), 0, int(i > 2)) for i in range(4))
    assert found.accuracy("quiz") == 3 / 4


def test_a_task_that_was_not_evaluated_is_no_zero():
    with pytest.raises(EvaluationError, match="not evaluated on 'math', only on quiz"):
        result([ItemResult("quiz", "0", (0.0, -1.0), 0, 0)]).accuracy("math")


def test_likelihoods_that_are_no_numbers_are_refused():
    with pytest.raises(EvaluationError, match="quiz/7"):
        result([ItemResult("quiz", "7", (float("nan"), -1.0), 0, 0)])


def outcome(passed, severity="critical"):
    return GateOutcome("size", 0.5, "at_most", 0.8, severity, passed, "")


def test_a_report_passes_when_nothing_critical_failed():
    assert GateReport("toy", (outcome(True), outcome(False, "warning"))).passed
    assert not GateReport("toy", (outcome(True), outcome(False))).passed


def test_a_report_without_gates_does_not_pass():
    assert not GateReport("toy", ()).passed


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1}) != digest_of({"a": 1, "b": [2, 1]})


def test_values_become_plain_json():
    assert as_json(plan([0, 1], [2, 3]))["groups"][1][0] == {"members": [2], "weights": [1.0]}
    assert as_json({"x": np.array([1.5])}) == {"x": [1.5]}
