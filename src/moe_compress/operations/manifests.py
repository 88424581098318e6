"""A job's steps as an Argo workflow, Kubernetes Jobs or an Airflow DAG: the same pods, on one volume claim."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import yaml

from moe_compress.operations.needs import JobNeeds, Needs
from moe_compress.operations.steps import Step

_PROJECT = "/home/compress/project"
_USER = 10001
"""Folder and user of the image."""
_TRIES = 3
_INDEX = "$((JOB_COMPLETION_INDEX + 1))"
"""What a shell in a pod of an indexed Job makes its shard's number of."""
_FAULT = 1
"""Exit code of what a user has to mend, so that trying again is no use."""
_SCHEDULE_SECONDS = 7 * 24 * 3600
"""How long Airflow lets a pod wait for a GPU, which others may hold for days; its own default is two minutes."""
_STARTUP_SECONDS = 3600
"""How long it lets a pod's node fetch the image, of several GB, and mount the volume."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where pods run and what they are handed.

    Attributes:
        domain: what the job compresses for.
        image: the image, with tag.
        claim: name of the volume claim for `data/`, which all pods share.
        secret: name of the secret whose entries become environment variables.
    """

    domain: str
    image: str
    claim: str
    secret: str

    @property
    def name(self) -> str:
        """What the whole is called."""
        return f"moe-compress-{self.domain}".lower().replace("_", "-")


def write_claim(_: Sequence[Step], needs: JobNeeds, place: Place) -> str:
    """Return the volume claim, which every form's pods mount and which outlives their jobs."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": place.claim},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": _quantity(needs.volume_bytes)}},
        },
    }
    return yaml.safe_dump(claim, sort_keys=False, width=110)


def write_kubernetes(steps: Sequence[Step], needs: JobNeeds, place: Place) -> str:
    """Return one Job a step; all but the first wait, suspended, until they are released."""
    jobs = [_job(step, needs.steps[step.kind], place) for step in steps]
    return yaml.safe_dump_all(jobs, sort_keys=False, width=110)


def _job(step: Step, needs: Needs, place: Place) -> Manifest:
    spec: Manifest = {"suspend": True} if step.after else {}
    if step.shards:
        counts = {"completions": step.shards, "parallelism": step.shards, "completionMode": "Indexed"}
        spec |= counts | {"backoffLimitPerIndex": _TRIES}
    else:
        spec |= {"backoffLimit": _TRIES}
    stop = {"action": "FailJob", "onExitCodes": {"containerName": "base", "operator": "In", "values": [_FAULT]}}
    spec |= {"podFailurePolicy": {"rules": [stop]}, "template": {"spec": make_pod(step, needs, place, _INDEX)}}
    name = f"{place.name}-{step.name}"
    after = {"moe-compress/after": ",".join(f"{place.name}-{other}" for other in step.after)} if step.after else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"app": place.name}, "annotations": after},
        "spec": spec,
    }


def write_argo(steps: Sequence[Step], needs: JobNeeds, place: Place) -> str:
    """Return the workflow: one template a step, joined by a DAG."""
    tasks: list[Manifest] = []
    for step in steps:
        task: Manifest = {"name": step.name, "template": step.name, "dependencies": list(step.after)}
        if step.shards:
            numbers = {"start": "1", "end": str(step.shards)}
            task |= {
                "withSequence": numbers,
                "arguments": {"parameters": [{"name": "shard", "value": "{{item}}"}]},
            }
        tasks.append(task)
    shared = make_pod(steps[0], needs.steps[steps[0].kind], place)
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{place.name}-"},
        "spec": {
            "entrypoint": "job",
            "securityContext": shared["securityContext"],
            "volumes": shared["volumes"],
            "templates": [
                {"name": "job", "dag": {"tasks": tasks}},
                *(_argo_template(step, needs.steps[step.kind], place) for step in steps),
            ],
        },
    }
    return yaml.safe_dump(workflow, sort_keys=False, width=110)


def _argo_template(step: Step, needs: Needs, place: Place) -> Manifest:
    pod = make_pod(step, needs, place, "{{inputs.parameters.shard}}")
    (container,) = pod["containers"]
    container = {name: value for name, value in container.items() if name != "name"}  # Argo calls it main
    again = {"limit": str(_TRIES), "expression": f"asInt(lastRetry.exitCode) != {_FAULT}"}
    inputs = {"inputs": {"parameters": [{"name": "shard"}]}} if step.shards else {}
    kept: Manifest = {name: pod[name] for name in ("initContainers", "affinity") if name in pod}
    if own := pod["volumes"][1:]:  # the first is the workflow's
        kept["volumes"] = own
    return {"name": step.name, **inputs, "retryStrategy": again, **kept, "container": container}


def write_airflow(steps: Sequence[Step], needs: JobNeeds, place: Place) -> str:
    """Return the source of a DAG with one task a shard."""
    pods: Manifest = {}
    names = {step.name: [_task(step, shard) for shard in _shards(step)] for step in steps}
    for step in steps:
        for shard in _shards(step):
            pod = make_pod(step, needs.steps[step.kind], place, shard)
            waits = [task for other in step.after for task in names[other]]
            pods[_task(step, shard)] = {"after": waits, "spec": pod}
    return _DAG.format(
        domain=place.domain,
        name=place.name,
        tries=_TRIES,
        schedule_seconds=_SCHEDULE_SECONDS,
        startup_seconds=_STARTUP_SECONDS,
        tasks=json.dumps(pods, indent=1),
    )


def _shards(step: Step) -> list[str]:
    return [str(number) for number in range(1, step.shards + 1)] or [""]


def _task(step: Step, shard: str) -> str:
    return f"{step.name}-{shard}" if shard else step.name


_DAG = '''"""Compresses for {domain}; written by `kedro compress export airflow`.

For Airflow 3 with apache-airflow-providers-cncf-kubernetes.
"""

import json

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

TASKS = json.loads(
    r"""
{tasks}
"""
)

with DAG("{name}", schedule=None, catchup=False, max_active_runs=1, default_args={{"retries": {tries}}}):
    operators = {{
        name: KubernetesPodOperator(
            task_id=name,
            name="{name}-" + name,
            pod_template_dict={{"apiVersion": "v1", "kind": "Pod", "spec": task["spec"]}},
            schedule_timeout_seconds={schedule_seconds},
            startup_timeout_seconds={startup_seconds},
        )
        for name, task in TASKS.items()
    }}
    for name, task in TASKS.items():
        operators[name].set_upstream([operators[other] for other in task["after"]])
'''


def make_pod(step: Step, needs: Needs, place: Place, shard: str = "") -> Manifest:
    """Return the pod that runs one command of a step.

    Args:
        step: the step.
        needs: what its command needs.
        place: where it runs.
        shard: the shard's number, or what stands for it until the pod starts.
    """
    data = {"name": "data", "mountPath": f"{_PROJECT}/data"}
    container = {
        "name": "base",
        "image": place.image,
        **_command(step, shard),
        "envFrom": [{"secretRef": {"name": place.secret}}],
        "resources": _resources(needs),
        "volumeMounts": [data],
    }
    pod: Manifest = {
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": place.claim}}],
    }
    if step.kind == "prepare":
        pod["initContainers"] = [_copy_inputs(place)]
    if step.kind == "collect":  # each shard checks its demonstrations, and would write the same pages
        container["volumeMounts"] = [data, {"name": "pages", "mountPath": f"{_PROJECT}/data/08_reporting"}]
        pod["volumes"] = [*pod["volumes"], {"name": "pages", "emptyDir": {}}]
    if needs.gpus:
        pod["affinity"] = _large_enough(needs)
    return pod


def _command(step: Step, shard: str) -> Manifest:
    if shard != _INDEX or not step.shards:
        # The image's entrypoint, too, but Argo would look that up in its registry, which may be closed to it.
        return {"command": ["kedro"], "args": step.arguments(shard)}
    words = shlex.join(["kedro", *step.arguments("$SHARD")])
    # Nothing expands in the quotes that a parameter may need, so the number is put beside them.
    return {"command": ["sh", "-c", "exec " + words.replace("$SHARD", f"'{_INDEX}'", 1)]}


def _copy_inputs(place: Place) -> Manifest:
    """Return what puts the image's own domains and model onto a volume that has none."""
    return {
        "name": "inputs",
        "image": place.image,
        "command": ["cp", "--recursive", "--no-clobber", "data/01_raw", "/volume/"],
        "volumeMounts": [{"name": "data", "mountPath": "/volume"}],
    }


def _resources(needs: Needs) -> Manifest:
    memory = _quantity(needs.memory_bytes)
    gpus = {"nvidia.com/gpu": needs.gpus} if needs.gpus else {}
    return {"requests": {"cpu": "4", "memory": memory, **gpus}, "limits": {"memory": memory, **gpus}}


def _large_enough(needs: Needs) -> Manifest:
    """Return the demand for GPUs of enough memory, by the label in MiB that NVIDIA's feature discovery sets."""
    label = {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [str(needs.gpu_bytes >> 20)]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [label]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _quantity(num_bytes: int) -> str:
    return f"{ceil(num_bytes / 2**30)}Gi"
