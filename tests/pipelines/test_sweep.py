"""A sweep tries, chooses and hands over; it goes on where it was stopped, and says no when nothing passes."""

from __future__ import annotations

import json
import re

import mlflow
import pytest

SETTINGS = """
sweep:
  methods: [easy_ep, frequency, group_and_merge]
  fractions_dropped: [{fractions}]
  rungs: [8]"""


def settle(project, fractions="0.25, 0.5, 0.9", **settings):
    """Write the sweep's parameters; a comma in a list would end the value on the command line."""
    lines = [f"  {name}: {value}" for name, value in settings.items()]
    (project.folder / "conf/local/parameters_sweep.yml").write_text(
        "\n".join([SETTINGS.format(fractions=fractions), *lines])
    )


@pytest.fixture
def swept(project):
    settle(project)
    return project


def sweep(project):
    return project.run("--pipelines=sweep_medical")


def results(project):
    return [json.loads(path.read_text()) for path in project.find("05_model_input/sweeps/medical/*/sweep.json")]


def test_the_smallest_plan_that_passes_is_chosen_and_taken(swept):
    result = sweep(swept)
    assert result.exit_code == 0, result.output
    (found,) = results(swept)
    assert {(entry["method"], entry["fraction_dropped"]) for entry in found["entries"]} == {
        (method, fraction) for method in ("easy_ep", "frequency") for fraction in (0.25, 0.5)
    }
    # 0.9 of 16 experts leaves fewer than top_k, and what merges cannot be masked.
    assert "keep at least 4" in found["skipped"]["easy_ep at 0.9"]
    assert "merges experts" in found["skipped"]["group_and_merge at 0.5"]
    assert found["choice"]["fraction_dropped"] == 0.5 and found["choice"]["size_ratio"] < 0.8
    assert found["check"]["num_items"] == 24 and found["check"]["num_different"] == 0
    assert {"no_missing_keys", "no_loops_added"} <= set(found["not_judged"])
    (_page,) = swept.find("08_reporting/medical/sweep-*/sweep.png")

    runs = mlflow.search_runs(search_all_experiments=True)
    parent = runs[runs["tags.sweep_choice"].notna()].iloc[0]
    children = runs[runs["tags.mlflow.parentRunId"] == parent["run_id"]]
    assert len(children) == 4 and set(children["params.method"]) == {"easy_ep", "frequency"}
    assert children["metrics.kl.medical"].notna().sum() == sum(bool(e["measured"]) for e in found["entries"])

    taken = swept.prune("select.from=sweep")
    assert taken.exit_code == 0, taken.output
    (plan,) = [json.loads(path.read_text()) for path in swept.find("05_model_input/plans/medical/*/plan.json")]
    assert plan["digest"] == found["choice"]["plan_digest"]
    assert plan["provenance"]["plan_from.method"] == found["choice"]["method"]
    assert plan["provenance"]["plan_from.budget"] == "fraction_dropped=0.5"
    (report,) = [path.read_text() for path in swept.find("08_reporting/medical/*/report.html")]
    assert "Why this plan: the sweep" in report and "answers 24 of 24 items as it did" in report
    assert len(swept.find("08_reporting/medical/*/sweep.png")) == 2
    assert re.search(r'aria-label="Accuracy against size of every plan', report)


def test_a_wider_sweep_asks_only_what_is_new(swept):
    assert sweep(swept).exit_code == 0
    files = {path: path.stat().st_mtime_ns for path in swept.find("02_intermediate/sweep/*/*.json")}
    settle(swept, "0.25, 0.5, 0.375")
    result = sweep(swept)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(swept.find("02_intermediate/sweep/*/*.json")) > len(files)
    assert len(results(swept)) == 2


def test_where_nothing_passes_the_sweep_is_shown_and_nothing_chosen(swept):
    (swept.folder / "conf/local/parameters_domains.yml").write_text(
        "domains: {medical: {gates: {near: {metric: kl.domain, at_most: 1.0e-9}}}}\n"
    )
    result = sweep(swept)
    assert result.exit_code == 1
    assert "no plan of the sweep of 'medical' passes its gates" in result.output and "near is " in result.output
    (found,) = results(swept)
    assert found["chosen"] is None and len(swept.find("08_reporting/medical/sweep-*/sweep.png")) == 1
    taken = swept.prune("select.from=sweep")
    assert taken.exit_code == 1 and "run kedro run --pipelines=sweep_medical first" in taken.output


def test_merging_methods_are_tried_by_writing_them(swept):
    settle(swept, "0.5", rewrite_merging="true")
    result = sweep(swept)
    assert result.exit_code == 0, result.output
    (found,) = results(swept)
    merged = next(entry for entry in found["entries"] if entry["method"] == "group_and_merge")
    assert merged["num_items"] > 0 and merged["size_ratio"] < 0.8
    assert not swept.find("02_intermediate/sweep/*/.trial-*")


def test_a_sweep_with_nothing_to_try_is_refused(swept):
    settle(swept, "0.9")
    result = sweep(swept)
    assert result.exit_code == 1 and "has nothing to try" in result.output


def test_nothing_is_tried_from_statistics_that_fail_their_gates(swept):
    (swept.folder / "conf/local/parameters_domains.yml").write_text(
        "domains: {medical: {statistics_gates: {many: {metric: tokens, at_least: 1.0e+9}}}}\n"
    )
    result = sweep(swept)
    assert result.exit_code == 1 and "the statistics for 'medical' failed 1 of 4 gates" in result.output
    assert "(domain medical), must be at least 1e+09" in result.output
    assert not swept.find("02_intermediate/sweep/*/*.json")
