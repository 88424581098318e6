"""`kedro compress export`: a domain's job for several machines, as files that an orchestrator takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.utils import _split_params

from moe_compress.command_line import command
from moe_compress.compress_commands import EXIT_CODES, compress, env_option


def read_params(context: click.Context, option: click.Parameter, text: str) -> tuple[str, dict[str, Any]]:
    """Return `--params` as typed, for the commands to write, and as read, for the estimate."""
    return text, _split_params(context, option, text)


@command(
    compress,
    "export",
    EXIT_CODES,
    "kedro compress export claim medical --shards 8 --to claim.yaml",
    "kedro compress export airflow medical --shards 8 --image registry.example.com/moe-compress:0.1.0-cuda",
    "kedro compress export argo medical --shards 8 --image ... --env qwen3_30b_a3b --checkpoint models/qwen3",
    "kedro compress export kubernetes medical --shards 8 --image ... --gpu-memory 141GB --to medical.yaml",
)
@click.argument("form", metavar="FORM", type=click.Choice(("airflow", "argo", "claim", "kubernetes")))
@click.argument("domain")
@click.option(
    "--shards", type=int, default=8, show_default=True, help="Parts of the collection, each on a machine."
)
@click.option("--image", help="This project's image, with its tag; a claim needs none.")
@click.option(
    "--gpu-memory", default="80GB", show_default=True, help="Of one GPU of the cluster; 0 uses CPUs alone."
)
@click.option("--gpus-per-node", type=int, default=8, show_default=True, help="The most that a pod can have.")
@click.option("--claim", default="moe-compress-data", show_default=True, help="Volume claim for data/.")
@click.option("--secret", default="moe-compress", show_default=True, help="Secret whose entries become variables.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Base model to estimate from.")
@click.option("--params", callback=read_params, default="", help="Parameters of every command.")
@env_option
@click.option("--to", type=click.Path(path_type=Path), help="File to write; the terminal if not given.")
def export(
    form: str,
    domain: str,
    shards: int,
    image: str | None,
    gpu_memory: str,
    gpus_per_node: int,
    claim: str,
    secret: str,
    checkpoint: Path | None,
    params: tuple[str, dict[str, Any]],
    env: str | None,
    to: Path | None,
) -> None:
    """Write DOMAIN's job for an orchestrator: shards, their sum, then the rest with gates and release.

    FORM is airflow (a DAG), argo (a workflow) or kubernetes (Jobs, released one after the other), or claim, the
    volume that the pods of all three mount. What pods ask for is estimated from the base model's headers and the
    demonstrations; no weights are read.
    """
    if image is None and form != "claim":
        raise click.UsageError("Missing option '--image': this project's image, with its tag.")
    from kedro.framework.project import pipelines

    from moe_compress.atomic import write_atomically
    from moe_compress.operations import manifests
    from moe_compress.operations.export import export_job
    from moe_compress.operations.project import open_project

    to = to.resolve() if to else None
    checkpoint = checkpoint.resolve() if checkpoint else None
    place = manifests.Place(domain, image or "", claim, secret)
    project = open_project(env, params[1])
    text = export_job(
        form, project, pipelines, place, shards, gpu_memory, gpus_per_node, checkpoint, params[0], env
    )
    if to is None:
        click.echo(text)
    else:
        write_atomically(to, text.encode())
