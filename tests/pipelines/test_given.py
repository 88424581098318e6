"""Plans that are given: carried out without collecting, in every format, and told in the lineage."""

from __future__ import annotations

import json

import mlflow
import pytest
from tests.pipelines.test_wrong_inputs import assert_refused
from transformers import AutoConfig

from moe_compress.errors import ParameterError
from moe_compress.registry.versions import resolve

KEPT = [[0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]]  # of 16 experts in layers 1 and 2
MASK = [[float(expert in kept) for expert in range(16)] for kept in KEPT]
PRUNED = {str(layer): [e for e in range(16) if e not in kept] for layer, kept in zip((1, 2), KEPT, strict=True)}
ORDERED = [{str(layer): [*kept, *PRUNED[str(layer)]]} for layer, kept in zip((1, 2), KEPT, strict=True)]
TEXTS = {
    "mask.json": json.dumps(MASK),
    "pruned.json": json.dumps(PRUNED),
    "ordered.jsonl": "\n".join(map(json.dumps, ORDERED)),
}


def written_plans(project, domain="medical"):
    files = project.find(f"05_model_input/plans/{domain}/*/plan.json")
    return [json.loads(path.read_text()) for path in files]


def kept_of(plan):
    return [layer["groups"] for layer in plan["layers"]]


def test_a_mask_is_carried_out_gated_and_registered_without_collecting(project):
    (project.folder / "mask.json").write_text(TEXTS["mask.json"])
    result = project.prune("select.from=mask.json")
    assert result.exit_code == 0, result.output
    assert project.find("04_feature/**/*.*") == []
    (plan,) = written_plans(project)
    assert kept_of(plan) == KEPT
    assert plan["provenance"]["plan_from"] == "mask.json"
    assert len(plan["provenance"]["plan_file_digest"]) == 64
    assert plan["provenance"]["method"] == "easy_ep_mask"
    assert "demonstrations_digest" not in plan["provenance"]
    version = resolve("moe-medical", "candidate")
    folder = version.source.removeprefix("file://")
    assert AutoConfig.from_pretrained(folder).n_routed_experts == 8
    assert version.tags["plan_from"] == "mask.json"
    run = mlflow.search_runs(search_all_experiments=True).iloc[0]
    assert run["params.select.from"] == "mask.json"
    assert "apply_medical" in run["tags.command"]


@pytest.mark.parametrize("name", ["pruned.json", "ordered.jsonl"])
def test_other_formats_in_a_domains_block(project, name):
    (project.folder / name).write_text(TEXTS[name])
    (project.folder / "conf/local/parameters_domains.yml").write_text(
        f"domains: {{math: {{select: {{from: {name}}}}}}}\n"
    )
    result = project.run("--pipelines=prune_math", "--to-nodes=math.refine_plan")
    assert result.exit_code == 0, result.output
    (plan,) = written_plans(project, "math")
    assert kept_of(plan) == KEPT


def test_a_plan_of_an_earlier_run_and_one_that_changed(project):
    only_plan = ("--to-nodes=medical.refine_plan", "--pipelines=prune_medical")
    assert project.run(*only_plan, "--params=select.method=frequency").exit_code == 0
    (first,) = project.find("05_model_input/plans/medical/*/plan.json")
    given = project.folder / "chosen.json"
    given.write_text(first.read_text())
    to_plan = ("--pipelines=apply_medical", "--to-nodes=medical.refine_plan", "--params=select.from=chosen.json")
    assert project.run(*to_plan).exit_code == 0
    taken = [plan for plan in written_plans(project) if "plan_from" in plan["provenance"]]
    assert [plan["digest"] for plan in taken] == [json.loads(first.read_text())["digest"]]
    assert taken[0]["method"] == "frequency"
    assert taken[0]["provenance"]["plan_from.run_key"] == json.loads(first.read_text())["provenance"]["run_key"]
    # The same name with other content is another run.
    given.write_text(TEXTS["mask.json"])
    assert project.run(*to_plan).exit_code == 0
    assert len(written_plans(project)) == 3


def test_what_is_no_plan_for_this_model(project):
    def refuse(text, part, *params):
        if text is not None:
            (project.folder / "given.json").write_bytes(text.encode("latin-1"))
        assert_refused(project, project.prune("select.from=given.json", *params), part)

    refuse(None, "select.from names given.json, and there is no such file")
    refuse("hello", "given.json is neither a plan of this package, nor EASY-EP's mask")
    refuse("\xff\xfe", "given.json is no text")
    refuse("[[1, 0]]", "2 rows, one per layer with experts, not 1")
    refuse(json.dumps({"1": [0]}), "layers would keep between 15 and 16 experts")
    budget = ("select.budget.experts_per_layer=2", "select.budget.fraction_dropped=null")
    refuse(TEXTS["ordered.jsonl"], "layer 1 would keep 2 experts", *budget)


def test_applying_needs_a_plan(project):
    result = project.run("--pipelines=apply_medical")
    assert result.exit_code == 1 and "select.from is null" in result.stderr


def test_a_session_that_would_collect_although_a_plan_is_given(project):
    from kedro.framework.session import KedroSession

    (project.folder / "mask.json").write_text(TEXTS["mask.json"])
    with (
        KedroSession.create(runtime_params={"select": {"from": "mask.json"}}) as session,
        pytest.raises(ParameterError, match="run apply_medical"),
    ):
        session.run(pipeline_names=["prune_medical"])
    mlflow.end_run("FAILED")  # kedro-mlflow leaves open a run that an error ends before its first node


def test_the_choice_of_a_sweep_over_another_model_is_refused(project):
    assert project.run("--pipelines=prune_medical", "--to-nodes=medical.refine_plan").exit_code == 0
    (made,) = project.find("05_model_input/plans/medical/*/plan.json")
    choice = project.folder / "data/05_model_input/sweeps/medical/key/plan.json"
    choice.parent.mkdir(parents=True)
    plan = json.loads(made.read_text())
    plan["provenance"]["base_weights_digest"] = "0" * 64
    choice.write_text(json.dumps(plan))
    result = project.prune("select.from=sweep")
    assert result.exit_code == 1
    assert "was of another base model (000000000000); run kedro run --pipelines=sweep_medical" in result.stderr
