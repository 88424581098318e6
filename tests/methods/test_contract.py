"""What every file of the folder keeps to, whatever it does: budgets, router groups, permutations, ties."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError, PluginError, StatisticsError
from moe_compress.types import Budget, ExpertGroup, ExpertStatistics

ROOT = Path(__file__).parents[2]
NAMES = methods.available()
SCORING = [name for name in NAMES if hasattr(methods.load(name), "score")]
PLANNING = [name for name in NAMES if not hasattr(methods.load(name), "score")]
BUDGETS = [
    Budget(experts_per_layer=6),
    Budget(fraction_dropped=0.25),
    Budget(fraction_dropped=0.5, scope="global"),
    Budget(experts_per_layer=7, multiple_of=4),
    Budget(fraction_dropped=0.4, scope="global", multiple_of=4),
    Budget(fraction_dropped=0.5, scope="global", at_most=8),  # leaves no choice but 8 of each
]
BY_IMPORTANCE = [
    Budget(fraction_dropped=0.45, scope="importance"),
    Budget(experts_per_layer=7, scope="importance", multiple_of=4),
    Budget(fraction_dropped=0.5, scope="importance", at_most=8),
]


def total_of(budget, layers, experts, step):
    """How many experts a budget keeps of equal layers, by hand."""
    rows = layers if budget.scope == "per_layer" else 1
    every = layers * experts // rows
    if budget.experts_per_layer is not None:
        keep = budget.experts_per_layer * (layers // rows)
    else:
        keep = every - int(every * budget.fraction_dropped + 1e-9)
    return -(-keep // step) * step * rows


def weighed(plan, names=range(100)):
    """Return per layer the plan's groups of experts, by name, with weights free of rounding."""
    return [
        {
            frozenset((names[m], round(w, 9)) for m, w in zip(group.members, group.weights, strict=True))
            for group in groups
        }
        for groups in plan.groups
    ]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_budgets_are_met_exactly(name, budget, make_statistics):
    plan = methods.plan(name, make_statistics(), budget, seed=3)
    counts = plan.new_layout.num_experts
    assert sum(counts) == total_of(budget, 3, 16, budget.multiple_of)
    assert all(count % budget.multiple_of == 0 for count in counts)
    assert max(counts) <= (budget.at_most or 16)
    if budget.scope == "per_layer":
        assert len(set(counts)) == 1


@pytest.mark.parametrize("budget", BY_IMPORTANCE, ids=str)
@pytest.mark.parametrize("name", SCORING)
def test_budgets_by_importance_are_met_exactly(name, budget, make_statistics):
    plan = methods.plan(name, make_statistics(), budget, seed=3)
    counts = plan.new_layout.num_experts
    assert sum(counts) == total_of(budget, 3, 16, budget.multiple_of)
    assert all(count % budget.multiple_of == 0 for count in counts)
    assert max(counts) <= (budget.at_most or 16)


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", NAMES)
def test_multiples_and_router_groups_hold_together(name, scope, make_statistics):
    # 4 groups and multiples of 6 make steps of 12: 11 of each layer round up to 12, 33 of all to 36.
    statistics = make_statistics(num_groups=4, topk_groups=2, experts=24)
    budget = Budget(experts_per_layer=11, scope=scope, multiple_of=6)
    counts = methods.plan(name, statistics, budget, seed=3).new_layout.num_experts
    assert sum(counts) == 36
    assert all(count % 12 == 0 for count in counts)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_every_group_sum_to_one(name, make_statistics):
    plan = methods.plan(name, make_statistics(), Budget(fraction_dropped=0.5), seed=3)
    for groups in plan.groups:
        assert all(sum(group.weights) == pytest.approx(1.0) for group in groups)
        assert [group.members[0] for group in groups] == sorted(min(group.members) for group in groups)


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_is_the_identity(name, scope, make_statistics):
    plan = methods.plan(name, make_statistics(), Budget(fraction_dropped=0.0, scope=scope), seed=3)
    assert plan.groups == (tuple(ExpertGroup((expert,)) for expert in range(16)),) * 3


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", NAMES)
def test_router_groups_stay_equal_or_are_given_up(name, scope, make_statistics):
    statistics = make_statistics(num_groups=4, topk_groups=2)
    budget = Budget(fraction_dropped=0.5, scope=scope)
    # Building the plan checks that groups are equal and members at home.
    balanced = methods.plan(name, statistics, budget, seed=1)
    assert sum(balanced.new_layout.num_experts) == 24
    assert balanced.new_layout.num_groups == 4
    free = methods.plan(name, statistics, budget, seed=1, router_groups="flatten")
    assert sum(free.new_layout.num_experts) == 24
    assert free.new_layout.num_groups == 1
    plain = methods.plan(name, make_statistics(), budget, seed=1)
    assert free.groups == plain.groups
    assert free.layout == statistics.layout


@pytest.mark.parametrize("scope", ["per_layer", "global"])
# The published voting breaks ties by expert, and a draw is no property of experts.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("random", "c_prune_released")])
def test_permuting_experts_permutes_the_plan(name, scope, make_statistics, permute_experts):
    statistics, order = make_statistics(seed=5), np.random.default_rng(0).permutation(16)
    budget = Budget(experts_per_layer=9, scope=scope)
    plain = methods.plan(name, statistics, budget, 0)
    permuted = methods.plan(name, permute_experts(statistics, order), budget, 0)
    assert weighed(permuted, order.tolist()) == weighed(plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_sums_does_not_matter(name, make_statistics):
    statistics = make_statistics()
    turned = ExpertStatistics(
        "toy", statistics.layout, dict(reversed(statistics.sums.items())), statistics.num_tokens
    )
    budget = Budget(fraction_dropped=0.5)
    assert methods.plan(name, turned, budget, 0).groups == methods.plan(name, statistics, budget, 0).groups


# Ranks and a batch's outputs are no sums over tokens.
SUMMED = [name for name in NAMES if name not in ("reconstruct", "c_prune_released")]


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", SUMMED)
def test_the_order_in_which_statistics_were_added_does_not_matter(name, scope, make_statistics):
    one, two, three = (make_statistics(seed) for seed in (1, 2, 3))
    budget = Budget(fraction_dropped=0.5, scope=scope)
    added = [(one + two) + three, three + (two + one), (three + one) + two]
    first, *others = [weighed(methods.plan(name, each, budget, 0)) for each in added]
    assert others == [first, first]


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", SUMMED)
def test_seeing_every_token_twice_changes_nothing(name, scope, make_statistics):
    statistics, budget = make_statistics(), Budget(fraction_dropped=0.5, scope=scope)
    twice = methods.plan(name, statistics + statistics, budget, 0)
    assert weighed(twice) == weighed(methods.plan(name, statistics, budget, 0))


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", SUMMED)
def test_the_scale_of_a_layer_does_not_matter(name, scope, make_statistics):
    statistics, budget = make_statistics(), Budget(fraction_dropped=0.5, scope=scope)
    factors = np.array([0.25, 1.0, 64.0])  # exact in floating point
    scaled = {
        key: values if key == "count" else values * factors.reshape(3, *[1] * (values.ndim - 1))
        for key, values in statistics.sums.items()
    }
    plan = methods.plan(name, replace(statistics, sums=scaled), budget, 0)
    assert weighed(plan) == weighed(methods.plan(name, statistics, budget, 0))


@pytest.mark.parametrize("scope", ["per_layer", "global"])
# Votes are few whole numbers, which tie.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("random", "c_prune_released")])
def test_without_ties_the_seed_decides_nothing(name, scope, make_statistics):
    budget = Budget(fraction_dropped=0.5, scope=scope)
    first, *others = [weighed(methods.plan(name, make_statistics(), budget, seed)) for seed in range(4)]
    assert others == [first] * 3


# The published layer stage breaks ties by expert.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "c_prune_released"])
def test_ties_do_not_favour_low_expert_ids(name, make_statistics):
    statistics = make_statistics()
    ones = {key: np.ones_like(values) for key, values in statistics.sums.items()}
    ones["elimination_rank"] = ones["elimination_error"] = np.zeros((3, 16))
    ones["count"] = np.full((3, 16), 2.0)
    same = ExpertStatistics("toy", statistics.layout, ones, 16)
    plans = [methods.plan(name, same, Budget(experts_per_layer=8), seed) for seed in range(20)]
    assert len({plan.groups for plan in plans}) > 10
    alone = [ExpertGroup((0,)) in plan.groups[0] for plan in plans]
    assert sum(alone) < 20


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_sum_is_named(name, make_statistics):
    statistics = make_statistics()
    for missing in methods.load(name).STATISTICS:
        sums = {key: values for key, values in statistics.sums.items() if key != missing}
        poor = ExpertStatistics("toy", statistics.layout, sums, statistics.num_tokens)
        budget = Budget(fraction_dropped=0.5, scope="global")
        with pytest.raises(StatisticsError, match=f"no statistic '{missing}' was collected"):
            methods.plan(name, poor, budget, 0)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parameters_are_refused_with_a_hint(name):
    with pytest.raises(ParameterError, match=f"{name} has no parameter 'gama'"):
        methods.check_parameters(name, {"gama": 1.0})


@pytest.mark.parametrize("name", PLANNING)
def test_methods_that_plan_have_no_scores_to_mix_or_share_by(name, make_statistics):
    with pytest.raises(ParameterError, match="has no scores to weigh"):
        methods.plan_mixed(name, [make_statistics()], Budget(fraction_dropped=0.5), 0, "max_min")
    with pytest.raises(ParameterError, match="no layer scores"):
        methods.plan(name, make_statistics(), Budget(fraction_dropped=0.5, scope="importance"), 0)


# The very examples that contributors read.
MADE_UP, MADE_UP_PLAN = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files are methods too."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    return tmp_path


def test_a_method_is_one_file(folder, make_statistics):
    (folder / "made_up.py").write_text(MADE_UP)
    statistics = make_statistics()
    scores = [
        [norm / count**2 for norm, count in zip(*rows, strict=True)]
        for rows in zip(statistics["norm"], statistics["count"], strict=True)
    ]
    plan = methods.plan("made_up", statistics, Budget(experts_per_layer=4), 0)
    assert plan.kept == tuple(tuple(sorted(sorted(range(16), key=lambda e: -row[e])[:4])) for row in scores)
    with pytest.raises(PluginError, match=re.escape("(did you mean 'made_up'?)") + ".*available: .*made_up"):
        methods.load("madeup")


def test_a_method_that_plans_is_one_file_with_parameters(folder, make_statistics):
    (folder / "made_up_plan.py").write_text(MADE_UP_PLAN)
    budget, statistics = Budget(experts_per_layer=4), make_statistics()
    loudest = methods.plan("made_up_plan", statistics, budget, 0, parameters={"power": 0.0})
    assert loudest.kept == methods.plan("ean", statistics, budget, 0).kept
    assert loudest.kept != methods.plan("made_up_plan", statistics, budget, 0).kept
    with pytest.raises(ParameterError, match=r"no parameter 'powr' \(did you mean 'power'\?\)"):
        methods.check_parameters("made_up_plan", {"powr": 5})
    with pytest.raises(ParameterError, match=r"'power' is -1, but input should be greater than or equal to 0"):
        methods.check_parameters("made_up_plan", {"power": -1})


def test_the_contract_runs_on_whatever_is_in_the_folder(tmp_path):
    """Drop the files of CONTRIBUTING.md into a copy of the package, and run this file on it with no other edit."""
    package = tmp_path / "moe_compress"
    shutil.copytree(Path(methods.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "methods" / "made_up.py").write_text(MADE_UP)
    (package / "methods" / "made_up_plan.py").write_text(MADE_UP_PLAN)
    (package / "methods" / "made_up_wrong.py").write_text(MADE_UP.replace("return ", "return -0.0 + 0 * "))
    command = [sys.executable, "-m", "pytest", __file__, "-k", "made_up", "-rf", "--no-header"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = re.findall(r"^FAILED .*::(\w+)\[(.*)\]", run.stdout, re.M)
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) > 60, run.stdout
    # A method that scores all the same is caught, and the two examples are not.
    assert failed and all("made_up_wrong" in parameters for _, parameters in failed), run.stdout
    assert {"test_permuting_experts_permutes_the_plan"} <= {test for test, _ in failed}


@pytest.mark.parametrize("text", ["STATISTICS = ()", "def score(s, seed): ...", MADE_UP + "\nplan = score\n"])
def test_files_that_are_no_methods_are_refused(folder, text):
    name = f"no_method_{len(text)}"
    (folder / f"{name}.py").write_text(text)
    with pytest.raises(PluginError, match=f"methods/{name}.py is no method"):
        methods.load(name)
