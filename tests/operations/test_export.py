"""Exported jobs are whole, run the same commands in all three forms, and end in the plain run's plan."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from dataclasses import replace
from graphlib import TopologicalSorter

import pytest
import yaml
from click.testing import CliRunner
from tests.pipelines.conftest import copy_project, enter

from moe_compress.checkpoint.index import read_index
from moe_compress.datasets.checkpoint import CheckpointDataset
from moe_compress.datasets.plan import read_plan
from moe_compress.errors import MoeCompressError, ResourceError
from moe_compress.export_commands import export as export_command
from moe_compress.operations.export import export_job
from moe_compress.operations.manifests import Place
from moe_compress.operations.needs import Needs, evaluated_bytes, evaluating, find_needs
from moe_compress.operations.project import open_project
from moe_compress.pipeline_registry import register_pipelines
from moe_compress.registry.versions import list_versions

PARAMS = "collect.batch_size=4"
IMAGE = "registry.example.com/moe-compress:0.1.0-cuda"
PLACE = Place("medical", IMAGE, "moe-compress-data", "moe-compress")
pytestmark = pytest.mark.filterwarnings("ignore", "error:::moe_compress")


def write_mixture(folder):
    (folder / "conf/local/parameters_domains.yml").write_text(
        "domains:\n  both: {name: both, registered_model: moe-both, of: [code, math]}\n"
    )


@pytest.fixture(scope="module")
def opened(inputs, empty_database, tmp_path_factory):
    """A project, opened once."""
    folder = tmp_path_factory.mktemp("opened")
    copy_project(inputs, folder)
    shutil.copyfile(empty_database, folder / "mlflow.db")
    write_mixture(folder)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        yield open_project(None, {"collect": {"batch_size": 4}})


def export(opened, form, domain="medical", shards=2, params=PARAMS, **options):
    return export_job(
        form, opened, register_pipelines(), replace(PLACE, domain=domain), shards, params=params, **options
    )


def read_kubernetes(text):
    """Return the jobs in an order that they can run in."""
    jobs = list(yaml.safe_load_all(text))
    named = {job["metadata"]["name"]: job for job in jobs}
    waits = {name: job["metadata"]["annotations"].get("moe-compress/after") for name, job in named.items()}
    order = TopologicalSorter({name: after.split(",") if after else [] for name, after in waits.items()})
    return [named[name] for name in order.static_order()]


def read_tasks(source):
    """Return the tasks of a DAG's source: the only text in it that is read as JSON."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.loads"
    ]
    return json.loads(ast.literal_eval(call.args[0]))


def commands_of_job(job, folder):
    """Return what a job's pods have kedro do; a shell fills in the shard, with a `kedro` that only prints."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    if "args" in container:
        assert container["command"] == ["kedro"]
        return [container["args"]]
    stub = folder / "kedro"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    found = []
    for index in range(job["spec"]["completions"]):
        env = {"PATH": f"{folder}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
        found.append(subprocess.check_output(container["command"], env=env, text=True).splitlines())
    return found


def commands_of_workflow(workflow):
    templates = {template["name"]: template for template in workflow["spec"]["templates"]}
    found = []
    for task in templates[workflow["spec"]["entrypoint"]]["dag"]["tasks"]:
        container = templates[task["template"]]["container"]
        assert container["command"] == ["kedro"]
        numbers = task.get("withSequence", {"start": 1, "end": 1})
        for number in range(int(numbers["start"]), int(numbers["end"]) + 1):
            found.append([word.replace("{{inputs.parameters.shard}}", str(number)) for word in container["args"]])
    return found


def run_exported(project, domain, shards, params, folder):
    """Export a domain's job and run its commands one after another."""
    words = ["kubernetes", domain, f"--shards={shards}", f"--image={IMAGE}", f"--params={params}", "--to=job.yaml"]
    result = CliRunner().invoke(export_command, words)
    assert result.exit_code == 0, result.output
    jobs = read_kubernetes((project.folder / "job.yaml").read_text())
    for job in jobs:
        for arguments in commands_of_job(job, folder):
            result = project.run(*arguments[1:])
            assert result.exit_code == 0, f"{arguments}: {result.output}{result.exception!r}"


def test_the_exported_commands_in_order_end_in_the_plan_of_a_plain_run(
    operator, inputs, tmp_path, tmp_path_factory, monkeypatch
):
    project, params = operator.project, f"{PARAMS},evaluate.limit=8,evaluate.prompts=2"
    run_exported(project, "medical", 2, params, tmp_path)
    assert len(project.find("04_feature/statistics/medical/*/statistics-*-of-2.safetensors")) == 2
    (version,) = list_versions("moe-medical")
    (plan,) = project.find("05_model_input/plans/medical/*/plan.json")

    plain = tmp_path_factory.mktemp("plain")
    copy_project(inputs, plain)
    monkeypatch.chdir(plain)
    result = project.run("--pipelines=prune_medical", "--to-outputs=medical.plan", f"--params={params}")
    assert result.exit_code == 0, result.output
    (same,) = plain.glob("data/05_model_input/plans/medical/*/plan.json")
    assert same.parent.name == plan.parent.name
    assert read_plan(same).digest == read_plan(plan).digest == version.tags["plan_digest"]


def test_the_exported_commands_of_a_mixture_end_in_a_version(operator, tmp_path):
    from kedro.framework.project import pipelines

    write_mixture(operator.project.folder)
    pipelines.configure("moe_compress.pipeline_registry")
    run_exported(operator.project, "both", 1, f"{PARAMS},evaluate.limit=4,evaluate.prompts=1", tmp_path)
    (version,) = list_versions("moe-both")
    assert version.tags["domains"] == "code+math"
    assert len(operator.project.find("04_feature/statistics/*/*/statistics.safetensors")) == 2


def test_all_three_forms_run_the_same_commands(opened, tmp_path):
    params = f"{PARAMS},select.seed=7"
    jobs = read_kubernetes(export(opened, "kubernetes", params=params))
    by_jobs = sorted(words for job in jobs for words in commands_of_job(job, tmp_path))
    tasks = read_tasks(export(opened, "airflow", params=params))
    containers = [task["spec"]["containers"][0] for task in tasks.values()]
    assert all(container["command"] == ["kedro"] for container in containers)
    by_tasks = sorted(container["args"] for container in containers)
    by_workflow = sorted(commands_of_workflow(yaml.safe_load(export(opened, "argo", params=params))))
    assert by_jobs == by_tasks == by_workflow
    assert [word for word in by_jobs[0] if "shard" in word] == [f"--params=collect.shard=1/2,{params}"]
    assert len(by_jobs) == 6


def test_every_command_gets_environment_and_parameters(opened):
    tasks = read_tasks(export(opened, "airflow", env="qwen3_30b_a3b", params="select.from=null,rewrite.mtp=it's"))
    for task in tasks.values():
        (container,) = task["spec"]["containers"]
        assert "--env=qwen3_30b_a3b" in container["args"]
        assert container["args"][-1].endswith("select.from=null,rewrite.mtp=it's")


def assert_pod_is_whole(spec, volumes):
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["image"] == IMAGE
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    (container,) = spec["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "moe-compress"}}] and "env" not in container
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


def test_kubernetes_jobs_are_whole(opened):
    claim, jobs = yaml.safe_load(export(opened, "claim")), read_kubernetes(export(opened, "kubernetes"))
    assert (claim["kind"], claim["spec"]["accessModes"]) == ("PersistentVolumeClaim", ["ReadWriteMany"])
    # What is deleted to repeat a job is no data.
    assert {(job["kind"], job["metadata"]["labels"]["app"]) for job in jobs} == {("Job", "moe-compress-medical")}
    assert len({job["metadata"]["name"] for job in jobs}) == len(jobs) == 5
    for job in jobs:
        spec = job["spec"]["template"]["spec"]
        assert len(job["metadata"]["name"]) <= 63
        assert job["spec"].get("suspend", False) == bool(job["metadata"]["annotations"])
        assert_pod_is_whole(spec, {volume["name"] for volume in spec["volumes"]})
        (data,) = (volume for volume in spec["volumes"] if volume["name"] == "data")
        assert data["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (indexed,) = (job["spec"] for job in jobs if job["spec"].get("completionMode") == "Indexed")
    assert indexed["completions"] == indexed["parallelism"] == 2


def test_the_workflow_refers_only_to_what_it_has(opened):
    spec = yaml.safe_load(export(opened, "argo"))["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    tasks = {task["name"]: task for task in templates[spec["entrypoint"]]["dag"]["tasks"]}
    list(TopologicalSorter({name: task["dependencies"] for name, task in tasks.items()}).static_order())
    assert {task["template"] for task in tasks.values()} | {spec["entrypoint"]} == set(templates)
    for task in tasks.values():
        template = templates[task["template"]]
        assert set(task["dependencies"]) <= set(tasks)
        asked = [parameter["name"] for parameter in template.get("inputs", {}).get("parameters", [])]
        given = [parameter["name"] for parameter in task.get("arguments", {}).get("parameters", [])]
        assert asked == given and bool(asked) == ("withSequence" in task)
        assert ("{{inputs.parameters.shard}}" in str(template["container"])) == bool(asked)
        volumes = {volume["name"] for volume in [*spec["volumes"], *template.get("volumes", [])]}
        pod = {"containers": [template["container"]], "securityContext": spec["securityContext"]}
        assert_pod_is_whole(pod | {"initContainers": template.get("initContainers", [])}, volumes)


def test_the_dag_has_one_task_a_shard_and_no_circle(opened):
    source = export(opened, "airflow")
    compile(source, "dag.py", "exec")
    tasks = read_tasks(source)
    order = list(TopologicalSorter({name: task["after"] for name, task in tasks.items()}).static_order())
    assert set(order) == set(tasks)
    assert tasks["reduce-medical"]["after"] == ["collect-medical-1", "collect-medical-2"]
    assert set(tasks["finish-medical"]["after"]) == {"reduce-medical", "baseline-medical"}
    for task in tasks.values():
        assert_pod_is_whole(task["spec"], {volume["name"] for volume in task["spec"]["volumes"]})


def test_airflow_lets_a_pod_wait_for_its_gpu_and_its_image(opened):
    source = ast.parse(export(opened, "airflow"))
    (operator,) = (
        node
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "KubernetesPodOperator"
    )
    given = {keyword.arg: keyword.value for keyword in operator.keywords}
    assert ast.literal_eval(given["schedule_timeout_seconds"]) >= 24 * 3600
    assert ast.literal_eval(given["startup_timeout_seconds"]) >= 1800


def test_a_mixture_collects_each_of_its_domains(opened):
    tasks = read_tasks(export(opened, "airflow", domain="both"))
    collected = {name for name in tasks if name.startswith("collect")}
    assert collected == {f"collect-{domain}-{number}" for domain in ("code", "math") for number in (1, 2)}
    assert tasks["prepare-math"]["after"] == ["prepare-code"]  # both hash the base model
    assert set(tasks["finish-both"]["after"]) == {"reduce-code", "reduce-math", "baseline-both"}


def with_parameters(opened, block, **settings):
    return replace(opened, parameters={**opened.parameters, block: {**opened.parameters[block], **settings}})


def test_needs_follow_the_estimate(opened):
    small, wide = find_needs(opened, "medical", 2, 10**9), find_needs(opened, "medical", 1, 10**9)
    assert small.steps["collect"].gpus == 1
    assert 0 < small.steps["collect"].gpu_bytes <= wide.steps["collect"].gpu_bytes
    one_by_one = with_parameters(opened, "collect", batch_size=1)
    assert find_needs(one_by_one, "medical", 2, 10**9).steps["collect"].gpu_bytes < small.steps["collect"].gpu_bytes
    without = find_needs(opened, "medical", 2, 0).steps
    assert all(needs.gpus == 0 for needs in without.values())
    collect = small.steps["collect"]
    assert without["collect"].memory_bytes == collect.memory_bytes + collect.gpu_bytes


def test_evaluation_gets_gpus_for_the_weights_of_one_model_at_a_time(opened):
    numbers = 77_568
    index = read_index(opened.catalog["base_model"].place)
    sizes = [with_parameters(opened, "evaluate", dtype=dtype) for dtype in ("float32", "bfloat16", "auto")]
    assert [evaluated_bytes(project, index) for project in sizes] == [4 * numbers, 2 * numbers, 2 * numbers]
    steps = find_needs(sizes[0], "medical", 2, 0).steps
    assert steps["finish"] == steps["baseline"]
    # 160 GB in GPUs of 80 GB of which weights take 64: three, each with more than a third of them
    assert evaluating(160 * 10**9, 80 * 10**9, 0) == Needs(4 << 30, 3, 53_333_333_334)


def test_a_pod_never_asks_for_more_gpus_than_a_node_has(opened, monkeypatch):
    monkeypatch.setattr("moe_compress.operations.needs.evaluated_bytes", lambda *_: 1376 * 10**9)
    with pytest.raises(ResourceError, match=r"22 GPUs of 80\.0 GB .* 8 of a node .*evaluate\.dtype .*--gpu-memory"):
        export(opened, "argo")
    assert find_needs(opened, "medical", 2, 80 * 10**9, gpus_per_node=22).steps["finish"].gpus == 22


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": 0}, "--shards is 0; give 1 or more"),
        ({"shards": 9}, "the demonstrations of 'medical' are only 3 batches"),
        ({"gpu_memory": "1000"}, r"of a GPU that has 0.0 GB; lower collect\.batch_size"),
        ({"gpu_memory": "80 cows"}, "'80 cows' is not understood"),
        ({"domain": "medicl"}, r"did you mean 'medical'\?"),
    ],
)
def test_what_can_not_be_exported_is_said(opened, changes, message):
    with pytest.raises(MoeCompressError, match=message):
        export(opened, "argo", **changes)


def test_what_is_not_divided_is_not_exported(opened):
    with pytest.raises(MoeCompressError, match="ranks of eliminations do not add"):
        export(with_parameters(opened, "select", method="reconstruct"), "argo")


def test_a_given_plan_has_nothing_to_collect(opened, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(MoeCompressError, match="so nothing is collected in shards; run apply_medical"):
        export(with_parameters(opened, "select", **{"from": str(tmp_path / "plan.json")}), "argo")


def test_a_model_elsewhere_is_estimated_from_a_copy(opened):
    class Elsewhere(dict):
        """The project's catalog, with its base model on the hub."""

        def get(self, name):
            return opened.catalog.get(name)

        def __missing__(self, name):
            return opened.catalog[name]

    hub = Elsewhere(base_model=CheckpointDataset("hf://org/model", "data/digests"))
    elsewhere = replace(opened, catalog=hub)
    with pytest.raises(MoeCompressError, match="give --checkpoint with a folder that has them"):
        export(elsewhere, "argo")
    copy = opened.catalog["base_model"].place
    assert export(elsewhere, "argo", checkpoint=copy) == export(opened, "argo")
