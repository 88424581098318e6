"""Mixtures: one model for several domains, from statistics that are collected once each."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from functools import partial

import mlflow
import pytest
from tests.pipelines.test_wrong_inputs import assert_refused

from moe_compress.errors import ParameterError
from moe_compress.pipelines.measure import name_worst, tell_worst
from moe_compress.pipelines.prune import create_mixture_pipeline
from moe_compress.pipelines.run_checks import check_parts
from moe_compress.registry.versions import resolve

BLOCK = "domains: {{clinic: {{name: clinic, registered_model: moe-clinic, of: [{}]{}}}}}\n"


def open_clinic(project, of="medical, general", more=""):
    """Write a mixture's block and build the pipelines."""
    from kedro.framework.project import pipelines

    (project.folder / "conf/local/parameters_domains.yml").write_text(BLOCK.format(of, more))
    pipelines.configure("moe_compress.pipeline_registry")
    assert "prune_clinic" in pipelines  # which builds them
    return project


@pytest.fixture
def clinic(project):
    """Return a function that does so in a project in which nothing was run."""
    return partial(open_clinic, project)


def test_a_mixture_collects_what_is_missing_and_is_registered_like_a_domain(pruned):
    project = open_clinic(pruned)
    (saved,) = project.find("04_feature/statistics/*/*/statistics.safetensors")
    before = saved.stat().st_mtime_ns
    result = project.prune(domain="clinic")
    assert result.exit_code == 0, result.output
    assert saved.stat().st_mtime_ns == before
    domains = [path.parts[-3] for path in project.find("04_feature/statistics/*/*/statistics.safetensors")]
    assert domains == ["general", "medical"]
    (path,) = project.find("05_model_input/plans/clinic/*/plan.json")
    provenance = json.loads(path.read_text())["provenance"]
    assert provenance["domain_weights"] == "general=1, medical=1"
    assert provenance["num_demonstrations"] == "24"
    version = resolve("moe-clinic", "candidate")
    assert version.tags["domains"] == "general+medical"
    told = {each.dataset.name for each in mlflow.get_run(version.run_id).inputs.dataset_inputs}
    measured = {f"{domain}.{what}" for domain in ("general", "medical") for what in ("demonstrations", "benchmark")}
    assert told == {"base_model", *measured}
    card = (project.find("06_models/clinic/*/checkpoint/README.md")[0]).read_text()
    assert "compressed for **medical, general**" in card
    # Other weights: another plan of the same statistics; what it makes is tuned on the texts of both domains.
    tune = ("tune.steps=2", "tune.device=cpu", "tune.validation=0.25")
    params = f"--params={','.join(('select.weights=max_min', *tune))}"
    assert project.run("--pipelines=prune_clinic", "--to-nodes=clinic.tune_checkpoint", params).exit_code == 0
    records = [json.loads(path.read_text()) for path in project.find("06_models/clinic/*/tuning.json")]
    assert sorted((r["num_training"], r["num_validation"]) for record in records for r in record) == [(18, 6)]
    plans = [json.loads(p.read_text()) for p in project.find("05_model_input/plans/clinic/*/plan.json")]
    assert len(plans) == 2
    assert len(project.find("04_feature/statistics/*/*/statistics.safetensors")) == 2


def test_a_limit_is_checked_again_where_everything_was_collected_before(clinic):
    project = clinic()
    assert project.run("--pipelines=collect_general,collect_medical").exit_code == 0
    before = project.find("04_feature/statistics/*/*/statistics.safetensors")
    result = project.prune("data.min_demonstrations=500", domain="clinic")
    assert result.exit_code == 1 and "fewer than 500 (data.min_demonstrations)" in result.output
    assert project.find("04_feature/statistics/*/*/statistics.safetensors") == before
    assert not project.find("05_model_input/plans/clinic/*")


def test_a_method_that_plans_by_itself_is_given_the_sum(clinic):
    project = clinic()
    planned = ("--pipelines=prune_clinic", "--to-nodes=clinic.rewrite_checkpoint")
    result = project.run(*planned, "--params=select.method=hc_smoe")
    assert result.exit_code == 0, result.output
    assert len(project.find("06_models/clinic/*/checkpoint/config.json")) == 1


@pytest.mark.parametrize(
    ("of", "more", "params", "parts"),
    [
        ("medical, mixed", "", [], ["domains.clinic.of names 'mixed'", "no domain of its own"]),
        ("medical, nowhere", "", [], ["domains.clinic.of names 'nowhere'", "use some of code, finance, general"]),
        ("medical, medical", "", [], ["domains.clinic.of is medical, medical", "each once"]),
        ("medical", "", [], ["domains.clinic.of is medical", "two domains or more"]),
        ("medical, code", ", select: {weights: {math: 2}}", [], ["names 'math'", "clinic does not mix"]),
        ("medical, code", ", select: {method: m_smoe}", [], ["needs logit_gram", "collect.statistics"]),
        (
            "medical, code",
            ", select: {method: hc_smoe, weights: {medical: 2}}",
            ["collect.statistics=[embedding]"],
            ["hc_smoe plans by itself and has no scores to weigh"],
        ),
        ("medical, code", "", ["select.from=conf/base/globals.yml"], ["select.from gives a plan", "apply_medical"]),
        ("medical, code", "", ["select.refine.swaps=3"], ["select.refine.swaps is 3", "one domain's text"]),
        ("medical, code", "", ["domains.clinic.of=[general]"], ["general"]),
    ],
)
def test_what_cannot_be_mixed(clinic, of, more, params, parts):
    project = clinic(of, more)
    assert_refused(project, project.prune(*params, domain="clinic"), *parts)


def test_a_mixture_of_one_name_in_two_environments_is_refused(clinic):
    project = clinic()
    other = project.folder / "conf/other/parameters_domains.yml"
    other.parent.mkdir()
    other.write_text("domains: {mixed: {of: [medical, code]}}\n")
    result = project.prune(domain="mixed")
    assert_refused(project, result, "domains.mixed.of is code, finance, general", "built for code, medical")


@pytest.mark.parametrize(
    ("start", "end", "is_taking"),
    [
        ([], "clinic.baseline_evaluation", False),
        ([], "medical.statistics", False),
        (["clinic.check_compatibility"], "clinic.compatibility", False),
        (["clinic.gate_statistics"], "clinic.statistics_report", True),
        (["clinic.tune_checkpoint"], "clinic.candidate_checkpoint", True),
    ],
)
def test_part_of_a_mixtures_pipeline_is_held_against_what_that_part_takes(start, end, is_taking):
    part = create_mixture_pipeline("clinic", ["medical", "general"]).filter(from_nodes=start, to_outputs=[end])
    check_parts({"domains": {"clinic": {"of": ["general", "medical"]}}}, "clinic", part)
    others = {"domains": {"clinic": {"of": ["code", "general", "medical"]}}}
    with pytest.raises(ParameterError, match="built for general, medical") if is_taking else nullcontext():
        check_parts(others, "clinic", part)


def test_what_comes_after_a_mixtures_plan_runs_by_itself(clinic):
    project = clinic()
    after = ("--from-nodes=clinic.check_compatibility", "--to-outputs=clinic.compatibility")
    for words in (["--to-outputs=clinic.plan"], after):
        result = project.run("--pipelines=prune_clinic", *words)
        assert result.exit_code == 0, result.output
    assert len(project.find("06_models/clinic/*/compatibility.json")) == 1


def test_the_worst_domain_is_gated():
    measured = {
        "share_kept.a": 0.9,
        "share_kept.b": 0.7,
        "perplexity_ratio.a": 1.5,
        "perplexity_ratio.b": 1.2,
        "accuracy.a": 0.5,
        "size_ratio": 0.6,
    }
    worst = {"share_kept.domain": 0.7, "perplexity_ratio.domain": 1.5}
    assert name_worst(measured, ["a", "b"]) == measured | worst
    assert tell_worst(measured, ["a", "b"]) == {
        "share_kept.domain": "domain b",
        "perplexity_ratio.domain": "domain a",
    }
    assert name_worst(measured, ["a"])["accuracy.domain"] == 0.5 and tell_worst(measured, ["a"]) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["share_kept", "kl"])
def test_a_domain_without_a_number_is_the_worst(kind, value):
    measured = {f"{kind}.a": 0.7, f"{kind}.b": value}
    assert repr(name_worst(measured, ["a", "b"])[f"{kind}.domain"]) == repr(value)
    assert tell_worst(measured, ["a", "b"]) == {f"{kind}.domain": "domain b"}
