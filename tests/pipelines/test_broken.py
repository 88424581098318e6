"""Broken candidates and statistics: the right gate says so with value, limit and place; nothing is registered.

One run is made for all of them; each breaks a copy of what it left.
"""

from __future__ import annotations

import json
import re

import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.pipelines.conftest import copy_finished, enter, forget_the_experiment, make_finished

from moe_compress.registry.promotion import promote
from moe_compress.registry.versions import find_version, list_versions

FEW = ("evaluate.tasks=[medical]", "evaluate.max_new_tokens=24", "evaluate.batch_sizes=[1]")


@pytest.fixture
def project(tmp_path_factory, tmp_path, monkeypatch):
    """A copy of a project whose run passed and registered version 1, in which to type commands."""
    finished = make_finished(tmp_path_factory.getbasetemp(), *FEW)
    forget_the_experiment(monkeypatch)
    return enter(copy_finished(finished, tmp_path / "project"), monkeypatch)


def docs_of(project):
    pages = (project.folder / "data/08_reporting/gx/uncommitted/data_docs").rglob("validations/**/*.html")
    return " ".join(re.sub(r"<[^>]+>|\s+", " ", page.read_text()) for page in pages)


def assert_stopped(result, *parts, versions=("1",)):
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in message
    newest = mlflow.search_runs(search_all_experiments=True, order_by=["start_time DESC"]).iloc[0]
    assert newest["status"] == "FAILED"
    assert [version.version for version in list_versions("moe-medical")] == list(versions)


def assert_shown(project, gate, failed):
    assert gate in docs_of(project)
    pages = project.find("08_reporting/medical/*/report.html")
    assert sum(f"Failed {failed} of 15 gates" in page.read_text() for page in pages) == 1


def tamper(project, change):
    """Change the written candidate's tensors as a failing disk or a wrong tool would, and forget what it scored."""
    (checkpoint,) = project.find("06_models/medical/*/checkpoint")
    for file in checkpoint.glob("*.safetensors"):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
    for name in ("evaluation", "probes"):
        for path in project.find(f"07_model_output/evaluations/medical/*/{name}.json"):
            path.unlink()


def shuffle_router_row(tensors):
    row = tensors["model.layers.2.mlp.gate.weight"][3]
    row.copy_(row[torch.arange(len(row) - 1, -1, -1)])


def loop_for_ever(tensors):
    # Nothing is added to a token's own embedding, which is most like itself: it is written again and again.
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()


def hide_nan(tensors):
    tensors["model.layers.1.mlp.experts.5.down_proj.weight"][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "params", "parts"),
    [
        (
            shuffle_router_row,
            (),
            ["routers_as_planned is 1 (layer 2 expert 3, which was expert ", "must be at most 0"],
        ),
        (
            loop_for_ever,
            ("gates.no_loops_added.metric=loops.domain", "gates.no_loops_added.at_most=0.1"),
            ["no_loops_added is 1, must be at most 0.1"],
        ),
    ],
)
def test_a_broken_candidate_fails_its_gate_and_is_not_registered(project, change, params, parts):
    tamper(project, change)
    assert_stopped(project.prune(*FEW, *params), *parts)
    assert_shown(project, parts[0].split()[0], 1)


def test_nan_is_refused_and_stays_refused_when_the_run_is_resumed(project):
    tamper(project, hide_nan)
    parts = ("finite_everywhere is 1 (", "holds NaN or infinity in model.layers.1.mlp.experts", "must be at most 0")
    for _ in range(2):
        assert_stopped(project.prune(*FEW), *parts)
    # What could not be measured fails its gate too.
    assert_shown(project, "finite_everywhere", 6)


@pytest.mark.usefixtures("one_figure")
def test_experts_dropped_at_random_drift_further_than_a_method_lets_them(project):
    (file,) = project.find("07_model_output/evaluations/medical/*/probes.json")
    drift = max(layer["drift"] for layer in json.loads(file.read_text())["layers"])
    (project.folder / "conf/local/parameters_domains.yml").write_text(
        f"domains: {{medical: {{gates: {{drift: {{metric: router_drift, at_most: {drift}}}}}}}}}\n"
    )
    result = project.prune(*FEW, "select.method=random", "select.seed=1", "evaluate.batch_sizes=[]")
    assert_stopped(result, "failed 1 of 16 gates", "drift is 0.", "(layer ", f"must be at most {drift:g}")


@pytest.mark.usefixtures("one_figure")
def test_a_stricter_limit_stops_a_run_that_is_otherwise_up_to_date(project):
    written = {path: path.stat().st_mtime_ns for path in project.find("0[4-7]*/**/*.*")}
    result = project.prune(*FEW, "gates.size_reduced.at_most=0.1")
    assert_stopped(result, "failed 1 of 15 gates", "size_reduced is 0.", "must be at most 0.1")
    assert {path: path.stat().st_mtime_ns for path in project.find("0[4-7]*/**/*.*")} == written
    assert "size_reduced: size_ratio at most 0.1" in docs_of(project)


def test_a_stricter_limit_on_statistics_stops_before_a_model_is_written(project):
    written = project.find("0[56]*/**/*.safetensors")
    result = project.prune(
        *FEW,
        "rewrite.max_shard_bytes=1000000",
        "statistics_gates.halves_agree.at_least=0.99",
        "statistics_gates.halves_agree.severity=critical",
    )
    assert_stopped(
        result,
        "the statistics for 'medical' failed 1 of 4 gates and no model is rewritten",
        "halves_agree is 0.",
        "must be at least 0.99",
    )
    assert project.find("0[56]*/**/*.safetensors") == written
    assert "halves_agree" in docs_of(project)


def test_refused_demonstrations_are_on_the_pages(project):
    path = project.folder / "data/01_raw/domains/medical/demonstrations.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, rows[0]]) + "\n")
    result = project.prune()
    assert_stopped(result, "1 demonstration of domain 'medical' repeats the id", "see data/08_reporting/gx")
    assert "every id stands once" in docs_of(project)


@pytest.mark.usefixtures("one_figure")
def test_a_gate_may_ask_for_what_the_baseline_and_the_champion_reach(project):
    (first,) = project.find("08_reporting/medical/*/report.html")
    assert "there is no champion yet" in first.read_text() and "Writing 1 sequence" in first.read_text()
    promote(find_version("moe-medical", "1"))
    (project.folder / "conf/local/parameters_domains.yml").write_text(
        "domains: {medical: {gates: {smaller: {metric: num_bytes, at_most: {of: baseline, times: 0.9}}, "
        "champion_matched: {metric: accuracy.domain, at_least: {of: champion}, severity: critical}}}}\n"
    )
    # The same model is as good as itself, and no model is better than itself by two.
    assert project.prune(*FEW).exit_code == 0
    pages = {page.read_text() for page in project.find("08_reporting/medical/*/report.html")}
    assert any("0.9 times the baseline" in page and "there is no champion yet" not in page for page in pages)
    result = project.prune(*FEW, "domains.medical.gates.champion_matched.at_least.plus=2")
    assert_stopped(result, "champion_matched is ", "the champion's ", " plus 2)", versions=["2", "1"])
