"""The same checkpoint with other values: names, order, dtypes, shards and every file beside the weights stay."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moe_compress.checkpoint.files import CONFIG, INDEX_FILE, list_companions, resolve_file
from moe_compress.checkpoint.index import CheckpointIndex, read_index
from moe_compress.checkpoint.jobs import ByteRange, CheckpointRewrite, ShardPlan, TensorJob
from moe_compress.errors import CheckpointError


def plan_values(
    index: CheckpointIndex, values: Path | None, tied: Mapping[str, str], staged: Path, plan_digest: str
) -> CheckpointRewrite:
    """Return the rewrite of a checkpoint that takes other values where they are different.

    A value that is the old one in the dtype it was computed in is no other: the old bytes stay.

    Args:
        index: the checkpoint.
        values: a folder with weights under the same names; None keeps all.
        tied: name -> the name under which its value is, for weights that are saved once and stand twice.
        staged: a folder to put the new weights into first; what is in it goes.
        plan_digest: identity of the compression plan that made the checkpoint.

    Raises:
        CheckpointError: if a value is not finite, or has no place or another shape in the checkpoint.
    """
    source = index
    if values is not None:
        _stage(index, read_index(values), tied, staged)
        source = read_index(staged)
    shards = tuple(
        ShardPlan(file, tuple(_copy(source, name) for name, _ in group))
        for file, group in groupby(index.tensors.items(), key=lambda item: item[1].file)
    )
    return CheckpointRewrite(source.folder, index.config, shards, plan_digest, source.stamps)


def _copy(source: CheckpointIndex, name: str) -> TensorJob:
    info = source.tensors[name]
    return TensorJob(name, info.dtype, info.shape, (ByteRange(info.file, info.start, info.num_bytes),))


def _stage(index: CheckpointIndex, values: CheckpointIndex, tied: Mapping[str, str], staged: Path) -> None:
    """Write a folder with the new weights and all that lies beside them, a shard at a time."""
    for name in sorted(values.tensors.keys() - index.tensors.keys() - tied.keys()):
        raise CheckpointError(
            f"the new weights have {name!r}, for which {index.folder} has no place; tune fewer parameters, or a "
            "model of another family"
        )
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for file, group in groupby(index.tensors.values(), key=lambda info: info.file):
        with safe_open(resolve_file(index.folder, file), framework="pt") as old:
            tensors = {info.name: _merge(old.get_tensor(info.name), info.name, values, tied) for info in group}
        save_file(tensors, staged / file, {"format": "pt"})
    beside = [CONFIG, *list_companions(index.folder)]
    if (index.folder / INDEX_FILE).is_file():
        beside.append(INDEX_FILE)
    for name in beside:
        (staged / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(resolve_file(index.folder, name), staged / name)


def _merge(old: torch.Tensor, name: str, values: CheckpointIndex, tied: Mapping[str, str]) -> torch.Tensor:
    """Return a tensor's new value in its old dtype; the old one where nothing is different."""
    source = name if name in values.tensors else tied.get(name, name)
    if source not in values.tensors:
        return old
    with safe_open(resolve_file(values.folder, values.tensors[source].file), framework="pt") as file:
        new: torch.Tensor = file.get_tensor(source)
    if new.shape != old.shape:
        raise CheckpointError(
            f"the new value of {name!r} has shape {list(new.shape)} and the old one {list(old.shape)}; tune a "
            "model of another family"
        )
    if torch.equal(old.to(new.dtype), new):
        return old
    if not torch.isfinite(new).all():
        raise CheckpointError(f"the new value of {name!r} is not finite; lower tune.learning_rate")
    return new.to(old.dtype)
