"""What each step of a job needs of a machine: the collection's own estimate, and the weights evaluation loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from moe_compress.checkpoint.index import CheckpointIndex, read_index
from moe_compress.collection.batches import encode
from moe_compress.collection.collect import find_dtype
from moe_compress.collection.distributed import refuse_empty_shards, refuse_what_does_not_add, take_share
from moe_compress.collection.estimate import Estimate, estimate
from moe_compress.collection.streamed import CheckpointFiles, StreamedModel
from moe_compress.errors import ParameterError, ResourceError
from moe_compress.families.derive import derive_layout
from moe_compress.loading import load_tokenizer
from moe_compress.operations.project import Project
from moe_compress.operations.steps import Kind
from moe_compress.pipelines.data import number_rows, sample, text_of
from moe_compress.pipelines.parameters import CollectParameters, DataParameters
from moe_compress.pipelines.run_keys import requests_of

PROCESS_BYTES = 4 << 30
"""Of the host: Python with its libraries, and what a GPU's driver maps."""
_FILLED = 0.8
"""Share of a GPU's memory that weights may take where something is computed with them."""


@dataclass(frozen=True)
class Needs:
    """What one command needs.

    Attributes:
        memory_bytes: of the host.
        gpus: GPUs of one machine.
        gpu_bytes: memory that each must have.
    """

    memory_bytes: int
    gpus: int = 0
    gpu_bytes: int = 0


@dataclass(frozen=True)
class JobNeeds:
    """What a whole job needs.

    Attributes:
        steps: kind of step -> what one command of it needs.
        volume_bytes: of the folder that all share: the base model, the candidate, and outputs between layers.
    """

    steps: Mapping[Kind, Needs]
    volume_bytes: int


def find_needs(
    project: Project,
    domain: str,
    shards: int,
    gpu_bytes: int,
    checkpoint: Path | None = None,
    gpus_per_node: int = 8,
) -> JobNeeds:
    """Return what a domain's job needs; reads names, shapes and the demonstrations, no weights.

    Args:
        project: parameters and catalog.
        domain: a domain or a mixture.
        shards: parts of each collection.
        gpu_bytes: memory of one of the cluster's GPUs; 0 computes on CPUs.
        checkpoint: a copy of the base model to look at; the configured one if it is a folder.
        gpus_per_node: the most GPUs that a pod can have.

    Raises:
        ParameterError: if the base model is not on this machine, or there are more shards than batches.
        ResourceError: if a shard does not fit on one GPU, or evaluation on those of one node.
    """
    index = read_index(checkpoint or find_folder(project))
    own = project.own(domain)
    estimates = [estimate_shard(project, part, shards, index) for part in own.get("of") or (domain,)]
    needed = max(each.device_bytes for each in estimates)
    sums = max(each.host_bytes for each in estimates)
    largest = max(path.stat().st_size for path in index.folder.glob("*.safetensors"))
    evaluated = evaluating(evaluated_bytes(project, index), gpu_bytes, largest)  # one model at a time is loaded
    if gpu_bytes:
        refuse_what_does_not_fit(domain, needed, evaluated.gpus, gpu_bytes, gpus_per_node)
    on_disk = sum(info.num_bytes for info in index.tensors.values())
    steps: dict[Kind, Needs] = {
        "prepare": Needs(PROCESS_BYTES),
        "collect": Needs(PROCESS_BYTES + sums + (0 if gpu_bytes else needed), 1 if gpu_bytes else 0, needed),
        "reduce": Needs(PROCESS_BYTES + (shards + 1) * sums),
        "baseline": evaluated,
        "finish": evaluated,
    }
    return JobNeeds(steps, 2 * on_disk + shards * sum(each.disk_bytes + each.host_bytes for each in estimates))


def refuse_what_does_not_fit(domain: str, shard: int, gpus: int, gpu_bytes: int, gpus_per_node: int) -> None:
    """Check that a shard fits on one GPU, and that evaluation takes no more GPUs than a node has.

    Args:
        domain: what the job is for.
        shard: bytes of GPU memory that the largest shard takes.
        gpus: what evaluation takes.
        gpu_bytes: memory of one GPU.
        gpus_per_node: the most GPUs that a pod can have.

    Raises:
        ResourceError: if it is not so.
    """
    if shard > gpu_bytes:
        raise ResourceError(
            f"a shard of {domain} needs about {shard / 1e9:,.1f} GB of a GPU that has {gpu_bytes / 1e9:,.1f} GB; "
            "lower collect.batch_size or collect.max_tokens, or give --gpu-memory of a larger one"
        )
    if gpus > gpus_per_node:
        raise ResourceError(
            f"evaluating {domain} takes {gpus} GPUs of {gpu_bytes / 1e9:,.1f} GB in one pod, more than the "
            f"{gpus_per_node} of a node (--gpus-per-node); set evaluate.dtype to a smaller one, or give a larger "
            "--gpu-memory"
        )


def find_folder(project: Project) -> Path:
    """Return the folder of the configured base model.

    Raises:
        ParameterError: if it is no folder.
    """
    place = project.catalog["base_model"].place
    if not isinstance(place, Path):
        raise ParameterError(
            f"the base model is {place}, and what it needs is read from its files; give --checkpoint with a folder "
            "that has them"
        )
    return place


def estimate_shard(project: Project, domain: str, shards: int, index: CheckpointIndex) -> Estimate:
    """Return what the largest shard of one domain's collection takes.

    Raises:
        ParameterError: if there are more shards than batches, or what is collected can not be divided.
    """
    settings = CollectParameters.model_validate(project.parameters["collect"])
    requests = {domain: requests_of(project.parameters, domain)}
    refuse_what_does_not_add(requests, shards)
    rows = number_rows(project.catalog[f"{domain}.demonstration_rows"].load())
    chosen = sample(rows, DataParameters.model_validate(project.parameters["data"]))
    tokenizer = load_tokenizer(index.folder)
    texts = [text_of(row) for row in chosen]
    batches = {domain: tuple(encode(texts, tokenizer, settings.max_tokens, settings.batch_size))}
    refuse_empty_shards(batches, f"1/{shards}")
    files = CheckpointFiles(index.folder, index.config, index.tensors)
    streamed = StreamedModel(files, find_dtype(files, settings.dtype), torch.device("cpu"))
    layout = derive_layout(index.config, index.shapes)
    mode = "resident" if settings.mode == "resident" else "streamed"
    share = take_share(batches, 0, shards)
    return estimate(mode, streamed, share, layout, Path(), requests, settings.embedding_tokens)


def evaluated_bytes(project: Project, index: CheckpointIndex) -> int:
    """Return the bytes of the base model's weights in memory where it is evaluated."""
    dtype = project.parameters["evaluate"]["dtype"]
    if dtype == "auto":
        return sum(info.num_bytes for info in index.tensors.values())
    plain = CheckpointFiles(index.folder, index.config, index.tensors).plain
    numbers = sum(torch.Size(shape).numel() for shape in plain.shapes.values())
    return numbers * int(getattr(torch, dtype).itemsize)


def evaluating(weights: int, gpu_bytes: int, largest_file: int) -> Needs:
    """Return what computing with weights that were loaded whole takes, spread over GPUs of one machine."""
    if not gpu_bytes:
        return Needs(PROCESS_BYTES + ceil(weights / _FILLED))
    gpus = ceil(weights / (_FILLED * gpu_bytes))
    return Needs(PROCESS_BYTES + largest_file, gpus, ceil(weights / gpus))
