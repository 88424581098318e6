"""Expert statistics of several domains from one pass over a checkpoint, by whichever way fits this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from moe_compress.collection.batches import Batch, digest_batches, encode_domains
from moe_compress.collection.distributed import (
    add_ranks,
    count_ranks,
    join_ranks,
    parse_shard,
    refuse_empty_shards,
    refuse_what_does_not_add,
    share_of,
)
from moe_compress.collection.estimate import (
    Estimate,
    choose_mode,
    estimate,
    free_host_bytes,
    refuse_what_cannot_fit,
)
from moe_compress.collection.progress import LayerRecord, Progress
from moe_compress.collection.resident import collect_resident, load_resident
from moe_compress.collection.resume import ResumePoint, bytes_held
from moe_compress.collection.streamed import CheckpointFiles, StreamedModel, collect_streamed
from moe_compress.collection.sums import RoutingSums, start_sums
from moe_compress.errors import ParameterError
from moe_compress.families.building import build_config
from moe_compress.loading import load_tokenizer
from moe_compress.types import Demonstrations, ExpertStatistics, MoELayout, Provenance, Reduction, digest_of

logger = logging.getLogger(__name__)
_KEPT_IN_MEMORY = 0.1
"""Outputs between layers stay in memory too if they take no more than this share of what is free."""


@dataclass(frozen=True)
class CollectSettings:
    """How statistics are collected.

    Attributes:
        mode: `resident` loads the model, `streamed` one decoder layer at a time, `auto` the first if it fits well.
        device: a torch device, or `auto` for the GPU when there is one; with `cuda` each rank has its own.
        dtype: a torch dtype's name, or `auto` for the checkpoint's own.
        batch_size: sequences per forward pass.
        max_tokens: longer texts are cut here, or at the model's context.
        shard: `2/8` collects the second of eight shares of the batches; None all.
        embedding_tokens: tokens that all experts run on, where `embedding` or `elimination` is requested.
    """

    mode: Literal["auto", "resident", "streamed"] = "auto"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16
    max_tokens: int = 2048
    shard: str | None = None
    embedding_tokens: int = 2048


def collect(
    files: CheckpointFiles,
    layout: MoELayout,
    domains: Mapping[str, Demonstrations],
    settings: CollectSettings,
    provenance: Mapping[str, Provenance],
    requests: Mapping[str, Collection[str]] | None = None,
    folder: Path | None = None,
    report: Callable[[LayerRecord], None] | None = None,
    reductions: Mapping[str, Reduction] | None = None,
    code: object = None,
) -> dict[str, ExpertStatistics]:
    """Return each domain's statistics; prompt and response tokens both count.

    Args:
        files: the checkpoint.
        layout: its layout, as read from its files.
        domains: name -> texts to run.
        settings: how.
        provenance: domain -> lineage to keep with the sums.
        requests: domain -> statistics to collect besides those every collection has; none by default.
        folder: where a streamed collection commits each layer, so that a killed one can go on; None: nowhere.
        report: is given a record of each streamed layer.
        reductions: domain -> what makes `elimination` of a layer's sample; needed where that is requested.
        code: stands for the code that collects, own and installed; what another began is not gone on with.

    Raises:
        ParameterError: if a shard does not exist, or what is requested cannot be divided among processes.
        UnsupportedModelError: if the family cannot be observed, or streamed, or not for what is requested.
        ResourceError: if memory or disk do not suffice.
        CheckpointError: if a shard vanished or weights are damaged.
        StatisticsError: if an invariant of the sums is broken.
    """
    _, count = parse_shard(settings.shard)
    batches, streamed = prepare(files, domains, settings)
    asked = requests or dict.fromkeys(domains, ())
    reduce = reductions or {}
    sums = {
        name: start_sums(layout, own, asked[name], settings.embedding_tokens, reduce.get(name))
        for name, own in batches.items()
    }
    with join_ranks(streamed.device) as (rank, num_ranks), ExitStack() as held:
        refuse_what_does_not_add(asked, count * num_ranks)
        share = share_of(batches, settings.shard, rank, num_ranks)
        weights = sorted({str(each.get("base_weights_digest")) for each in provenance.values()})
        wanted = {name: [sorted(own), repr(reduce.get(name))] for name, own in asked.items()}
        base = [weights, wanted, settings.embedding_tokens, code]
        if any(share.values()):  # of more ranks than batches, the last have nothing to do
            run(streamed, share, sums, settings, folder, base, held, report)
        if num_ranks > 1:
            add_ranks(sums, streamed.device)
    lineage = {"shard": settings.shard} if settings.shard else {}
    return {name: own.as_statistics(name, {**provenance[name], **lineage}) for name, own in sums.items()}


def foresee(
    files: CheckpointFiles,
    layout: MoELayout,
    domains: Mapping[str, Demonstrations],
    settings: CollectSettings,
    requests: Mapping[str, Collection[str]],
    folder: Path | None,
) -> None:
    """Say what `collect` would take of these, and refuse what cannot fit; reads headers and texts alone.

    Raises:
        ParameterError: if a shard does not exist.
        UnsupportedModelError: if the family cannot be streamed and is to be.
        ResourceError: if memory or disk do not suffice.
    """
    batches, streamed = prepare(files, domains, settings)
    _, count = parse_shard(settings.shard)
    largest = share_of(batches, f"1/{count}", 0, count_ranks())
    settle(streamed, largest, layout, settings, folder, requests)


def prepare(
    files: CheckpointFiles, domains: Mapping[str, Demonstrations], settings: CollectSettings
) -> tuple[dict[str, tuple[Batch, ...]], StreamedModel]:
    """Return each domain's batches, and the model without weights.

    Raises:
        ParameterError: if a shard would be empty.
        UnsupportedModelError: if the model cannot be built.
    """
    config = build_config(files.config)
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or settings.max_tokens
    tokenizer = load_tokenizer(files.folder)
    batches = encode_domains(domains, tokenizer, min(settings.max_tokens, context), settings.batch_size)
    refuse_empty_shards(batches, settings.shard)
    return batches, StreamedModel(files, find_dtype(files, settings.dtype), find_device(settings.device))


def settle(
    streamed: StreamedModel,
    batches: Mapping[str, Sequence[Batch]],
    layout: MoELayout,
    settings: CollectSettings,
    folder: Path | None,
    requests: Mapping[str, Collection[str]],
    held_bytes: int = 0,
) -> Estimate:
    """Return what collecting takes in the mode that suits this machine, after saying so.

    Args:
        streamed: the model.
        batches: what is to run through it.
        layout: its layout.
        settings: how.
        folder: where a streamed collection commits each layer.
        requests: domain -> statistics besides those every collection has.
        held_bytes: what the same collection has on disk already, from when it was interrupted.

    Raises:
        UnsupportedModelError: if the weights cannot be streamed and are to be.
        ResourceError: if memory or disk do not suffice.
    """
    extra = (requests, settings.embedding_tokens)
    resident = estimate("resident", streamed, batches, layout, None, *extra)
    mode, why = choose_mode(settings.mode, resident, streamed.device, streamed.files)
    needed = resident if mode == "resident" else estimate("streamed", streamed, batches, layout, folder, *extra)
    logger.info("%s\nchosen because %s", needed, why)
    refuse_what_cannot_fit(needed, streamed.device, folder, held_bytes)
    return needed


def run(
    streamed: StreamedModel,
    batches: Mapping[str, Sequence[Batch]],
    sums: Mapping[str, RoutingSums],
    settings: CollectSettings,
    folder: Path | None,
    base: object,
    held: ExitStack,
    report: Callable[[LayerRecord], None] | None = None,
) -> None:
    """Add up each domain's sums, after saying what they will take; where they lie is `held` from others."""
    layout = next(iter(sums.values())).layout
    asked = {name: own.requests for name, own in sums.items()}
    name = fingerprint(streamed, layout, batches, base)
    needed = settle(streamed, batches, layout, settings, folder, asked, bytes_held(folder, name))
    is_resident = needed.mode == "resident"
    model = load_resident(streamed.files.folder, streamed.device, streamed.dtype) if is_resident else None
    progress = Progress(needed.num_tokens, streamed.num_layers if model is None else 1, report)
    try:
        if model is not None:
            collect_resident(model, batches, sums, progress)
            return
        keep = needed.between_bytes <= _KEPT_IN_MEMORY * free_host_bytes()
        point = ResumePoint(folder, name, keep)
        held.callback(point.close)
        collect_streamed(streamed, batches, sums, point, progress)
    finally:
        progress.close()


def find_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is `cuda` with a GPU, and of `cuda` each local rank has its own.

    Raises:
        ParameterError: if this machine has fewer GPUs than ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return torch.device(name)
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count > 0:
        raise ParameterError(
            f"torchrun started rank {rank} on a machine with {count} GPUs, and each rank takes one; start {count} "
            "there (--nproc-per-node)"
        )
    return torch.device("cuda", rank)


def find_dtype(files: CheckpointFiles, name: str) -> torch.dtype:
    """Return the dtype to compute in: the one named, or for `auto` the one stock loading takes."""
    found: Any = build_config(files.config).dtype if name == "auto" else name
    if found is None:
        floating = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        found = next((floating[i.dtype] for i in files.tensors.values() if i.dtype in floating), "float32")
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found))


def fingerprint(
    streamed: StreamedModel, layout: MoELayout, batches: Mapping[str, Sequence[Batch]], base: object
) -> str:
    """Return a digest of everything that a streamed collection's sums depend on.

    Args:
        streamed: the model.
        layout: its layout.
        batches: what runs through it.
        base: stands for the weights' bytes, for what was asked for, and for the code.
    """
    files = [[info.name, info.dtype, info.start, info.file] for info in streamed.files.tensors.values()]
    machine = [str(streamed.dtype), streamed.device.type, torch.__version__]
    return digest_of([base, dict(streamed.files.config), files, asdict(layout), digest_batches(batches), machine])
