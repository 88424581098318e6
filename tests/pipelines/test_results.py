"""The results table from one command, on the toy project; stopped and gone on with."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

import numpy as np
import pytest

import moe_compress
from moe_compress.cli import run
from moe_compress.errors import PluginError
from moe_compress.pipelines.results import describe_command
from moe_compress.pipelines.results_plans import ResultsParameters, plan_rows
from moe_compress.pipelines.results_runs import MEASURING
from moe_compress.types import MIXED, ExpertStatistics, MoELayout

SMALL = """
results:
  domains: [medical, code]
  fractions_dropped: [0.25, 0.5]
  rows:
    random: {method: random, seeds: [1, 2]}
    easy_ep_max_min: {method: easy_ep, weights: max_min}
    seer_global: {method: seer, scope: global}
  compared_method: easy_ep
  compared_fractions: [0.5]
  benchmark_limit: 8
  heldout_limit: 4
  workers: 1
  seed: 42
  page: docs/results/methods.md
"""


@pytest.fixture
def small(project):
    (project.folder / "conf/local/parameters_results.yml").write_text(SMALL)
    return project


def test_one_command_writes_the_table_and_a_stopped_one_goes_on(small):
    result = small.run("--pipelines=results")
    assert result.exit_code == 0, result.output
    page = (small.folder / "docs/results/methods.md").read_text()
    assert "## 25 % of the experts dropped" in page and "## 50 % of the experts dropped" in page
    # Own and mixed plans at two fractions.
    assert page.count("| `reap` |") == page.count("| `hc_smoe` (merges) |") == 4
    assert page.count("| `easy_ep_max_min` |") == 2
    with (small.folder / "docs/results/methods.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["row"] for line in lines} >= {"base", "random", "seer_global", "c_prune", "m_smoe"}
    halves = {float(line["num_parameters"]) for line in lines if line["fraction_dropped"] == "0.5"}
    (base,) = {float(line["num_parameters"]) for line in lines if line["row"] == "base"}
    assert halves and max(halves) < base

    kept = {file: file.stat().st_mtime_ns for file in small.find("07_model_output/results/*.json")}
    lost = sorted(kept)[:2]
    for file in lost:
        file.unlink()
    again = small.run("--pipelines=results")
    assert again.exit_code == 0, again.output
    assert (small.folder / "docs/results/methods.md").read_text() == page
    now = {file: file.stat().st_mtime_ns for file in small.find("07_model_output/results/*.json")}
    assert {file for file in kept if now[file] != kept[file]} == set(lost)
    assert set(json.loads(lost[0].read_text())) == {"right", "perplexity", "kl", "num_parameters"}


def test_the_command_on_the_page_asks_as_much_again():
    given = ResultsParameters(domains=("a", "b"), benchmark_limit=100, seed=7)
    words = describe_command(given).split()
    assert words[:3] == ["kedro", "run", "--pipelines=results"]
    said = run.make_context("run", words[2:]).params["params"]["results"]
    assert said == {"benchmark_limit": 100, "heldout_limit": None, "seed": 7}


def test_what_a_measurement_runs_is_in_its_key():
    """Every module of evaluation that `plans` imports, directly or not, is named in `MEASURING`."""
    root = Path(moe_compress.__file__).parent
    seen, waiting = set(), ["evaluation/plans.py", "evaluation/heldout.py", "evaluation/loading.py"]
    while waiting:
        place = waiting.pop()
        seen.add(place)
        for node in ast.walk(ast.parse((root / place).read_text())):
            name = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if name.startswith(("moe_compress.evaluation.", "moe_compress.families.masking")):
                found = name.removeprefix("moe_compress.").replace(".", "/") + ".py"
                waiting += [found] if found not in seen else []
    assert seen <= set(MEASURING)


@pytest.fixture
def make_statistics():
    """Return a function that makes one domain's statistics of what every collection has."""

    def make(domain):
        layout = MoELayout((0, 1), (8, 8), 2)
        rng = np.random.default_rng(len(domain) + ord(domain[0]))
        counts = rng.multinomial(40, np.full(8, 1 / 8), 2).astype(float)
        names = ("gate", "norm", "gate_norm", "gate_norm_change", "gate_change", "router_probability")
        return ExpertStatistics(
            domain, layout, {"count": counts, **{name: rng.random((2, 8)) for name in names}}, 20
        )

    return make


def test_rows_that_cannot_be_had_are_left_out_with_the_reason(make_statistics):
    statistics = {name: make_statistics(name) for name in ("a", "b")}
    parameters = ResultsParameters(
        domains=("a", "b"),
        fractions_dropped=(0.5,),
        rows={"easy_ep_shared": {"method": "easy_ep", "scope": "importance"}},
        compared_fractions=(0.5,),
    )
    trials, left_out = plan_rows(statistics, parameters)
    assert {trial.domains for trial in trials if trial.key.made_for == MIXED} == {("a", "b")}
    assert {trial.domains for trial in trials if trial.key[:2] == ("reap", "a")} == {("a",)}
    assert {trial.domains for trial in trials if trial.key[:2] == ("easy_ep", "a")} == {("a", "b")}
    # Nothing was collected for it in these statistics.
    reasons = {each.row: each.reason for each in left_out}
    assert "no statistic 'logit_gram' was collected" in reasons["m_smoe, own"]
    assert not any(trial.key.row == "m_smoe" for trial in trials)
    assert any(trial.key.row == "easy_ep_shared" for trial in trials)


def test_a_row_of_no_method_is_refused():
    for given in ({"rows": {"mine": {"method": "easyep"}}}, {"compared_method": "easyep"}):
        with pytest.raises(PluginError, match="no 'easyep' in methods/"):
            ResultsParameters(domains=("a", "b"), **given).all_rows()
