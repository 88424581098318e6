"""One domain's job as the text of a file that an orchestrator takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kedro.pipeline import Pipeline

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.operations.manifests import Place, write_airflow, write_argo, write_claim, write_kubernetes
from moe_compress.operations.needs import find_needs
from moe_compress.operations.project import Project
from moe_compress.operations.steps import plan_steps
from moe_compress.pipelines.request_checks import check_selection
from moe_compress.pipelines.run_keys import find_source

FORMS = {"airflow": write_airflow, "argo": write_argo, "claim": write_claim, "kubernetes": write_kubernetes}


def export_job(
    form: str,
    project: Project,
    pipelines: Mapping[str, Pipeline],
    place: Place,
    shards: int,
    gpu_memory: str = "80GB",
    gpus_per_node: int = 8,
    checkpoint: Path | None = None,
    params: str = "",
    env: str | None = None,
) -> str:
    """Return the file's text.

    Args:
        form: `airflow`, `argo` or `kubernetes`, or `claim` for the volume that these mount.
        project: parameters and catalog as every command of the job has them.
        pipelines: the registered ones.
        place: the domain, and where its pods run.
        shards: parts of each collection.
        gpu_memory: of one GPU of the cluster, such as `80GB`; `0` for none.
        gpus_per_node: the most GPUs that a pod can have.
        checkpoint: a copy of the base model to estimate from.
        params: as typed after `--params`.
        env: the environment under `conf/`.

    Raises:
        ParameterError: if nothing would be collected, or the request can not be met.
        ResourceError: if a shard does not fit on one GPU, or evaluation on those of one node.
    """
    domain = place.domain
    project.own(domain)
    check_selection(project.parameters, domain)
    if find_source(project.parameters, domain):
        raise ParameterError(
            f"select.from gives the plan of {domain}, so nothing is collected in shards; run apply_{domain}"
        )
    steps = plan_steps(pipelines, project.catalog, domain, shards, params, env)
    gpu_bytes = 0 if gpu_memory == "0" else methods.parse_size(gpu_memory)
    needs = find_needs(project, domain, shards, gpu_bytes, checkpoint, gpus_per_node)
    return FORMS[form](steps, needs, place)
