"""A collection divided among processes: whole batches are dealt out, and what each added up is added together.

A batch has the same rows wherever it runs, so its routing is the same and counts are equal to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import reduce
from operator import add

import torch
import torch.distributed as dist

from moe_compress.collection.batches import Batch
from moe_compress.collection.sums import RoutingSums, combine
from moe_compress.errors import ParameterError, StatisticsError
from moe_compress.types import ExpertStatistics

_PATIENCE = timedelta(days=7)
"""Ranks meet once, at the end; one that dies is noticed at once, one that is slow is waited for."""


@contextmanager
def join_ranks(device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield (rank, number of ranks) as `torchrun` set them, joined with the others; (0, 1) for a lone process.

    Args:
        device: what this rank computes on, and what it adds with the others; inside the block a GPU is what CUDA
            takes for the current one, where the ranks' names and shapes travel too.
    """
    is_cuda = device.type == "cuda"
    count = count_ranks()
    with torch.cuda.device(device) if is_cuda else nullcontext():
        if count == 1 or dist.is_initialized():
            yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
            return
        dist.init_process_group(
            "nccl" if is_cuda else "gloo", timeout=_PATIENCE, device_id=device if is_cuda else None
        )
        try:
            yield dist.get_rank(), count
        finally:
            dist.destroy_process_group()


def count_ranks() -> int:
    """Return the number of processes that `torchrun` started together, 1 for a lone one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_local_ranks() -> int:
    """Return the number of those processes on this machine, which share its memory and disk."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Return (place counted from 0, number of shards) of `2/8`; (0, 1) for None.

    Raises:
        ParameterError: if there is no such shard.
    """
    if shard is None:
        return 0, 1
    place, _, count = shard.partition("/")
    if not 1 <= int(place) <= int(count):
        raise ParameterError(f"collect.shard is {shard}; give i/n with i from 1 to n")
    return int(place) - 1, int(count)


def refuse_empty_shards(domains: Mapping[str, Sequence[Batch]], shard: str | None) -> None:
    """Check that a shard has something to collect of every domain.

    Raises:
        ParameterError: if it has not.
    """
    _, count = parse_shard(shard)
    name, fewest = min(((name, len(batches)) for name, batches in domains.items()), key=lambda item: item[1])
    if fewest < count:
        raise ParameterError(
            f"collect.shard is {shard}, but the demonstrations of '{name}' are only {fewest} batches; give at most "
            f"{fewest} shards, or lower collect.batch_size"
        )


def refuse_what_does_not_add(requests: Mapping[str, Collection[str]], num_processes: int) -> None:
    """Check that what each of several processes collects can be added up.

    Args:
        requests: domain -> statistics besides those every collection has.
        num_processes: ranks of all shards.

    Raises:
        ParameterError: if it cannot.
    """
    alone = [domain for domain, own in requests.items() if "elimination" in own]
    if alone and num_processes > 1:
        raise ParameterError(
            f"'elimination_rank' of domain '{alone[0]}' is asked for from {num_processes} processes, but ranks of "
            "eliminations do not add, and one elimination needs the whole sample; collect it in one process, "
            "without collect.shard and torchrun"
        )


def share_of(
    domains: Mapping[str, Sequence[Batch]], shard: str | None, rank: int, num_ranks: int
) -> dict[str, tuple[Batch, ...]]:
    """Return the batches of one rank of a shard: a shard has the same batches however many ranks collect it."""
    return take_share(take_share(domains, *parse_shard(shard)), rank, num_ranks)


def take_share(domains: Mapping[str, Sequence[Batch]], place: int, count: int) -> dict[str, tuple[Batch, ...]]:
    """Return every `count`-th batch of each domain from `place` on: longest first, so shares are of like length."""
    return {name: tuple(batches[place::count]) for name, batches in domains.items()}


def add_ranks(domains: Mapping[str, RoutingSums], device: torch.device) -> None:
    """Add up in place what all ranks added up, in float64; afterwards every rank has the whole.

    Args:
        domains: name -> this rank's sums.
        device: where the ranks' backend wants what it adds.
    """
    for sums, row in ((own, row) for own in domains.values() for row in range(len(own.layout.layers))):
        ours = sums.state([row])  # layer by layer: all of them at once may be large
        shapes = _gather_shapes({key: tuple(value.shape) for key, value in ours.items()})
        for key, shape in sorted(shapes.items()):  # a rank without batches of this domain has nothing yet
            value = ours.get(key, torch.zeros(shape, dtype=torch.float64)).to(device)
            dist.all_reduce(value, dist.ReduceOp.SUM if _is_sum(key) else dist.ReduceOp.MAX)
            ours[key] = value
        sums.restore(ours)


def add_shards(shards: Sequence[ExpertStatistics]) -> ExpertStatistics:
    """Return the statistics of all shards together.

    Raises:
        StatisticsError: if a shard is missing, or they are shards of different divisions.
    """
    found = {statistics.provenance["shard"]: statistics for statistics in shards}
    counts = {int(shard.partition("/")[2]) for shard in found}
    if len(counts) != 1:
        raise StatisticsError(
            f"the shards {', '.join(sorted(found)) or 'are none at all'} are not of one division; remove those of "
            "another, or collect one with --params=collect.shard=1/2"
        )
    count = counts.pop()
    names = [f"{place}/{count}" for place in range(1, count + 1)]
    missing = [name for name in names if name not in found]
    if missing:
        raise StatisticsError(
            f"{len(missing)} of {len(names)} shards are missing; collect them with "
            f"--params=collect.shard={missing[0]}" + (" and so on" if missing[1:] else "")
        )
    whole = reduce(add, (found[name] for name in names))
    return replace(whole, provenance={name: v for name, v in whole.provenance.items() if name != "shard"})


def _gather_shapes(ours: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of everything that any rank has."""
    gathered: list[dict[str, tuple[int, ...]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, ours)
    return {key: shape for shapes in gathered for key, shape in shapes.items()}


def _is_sum(key: str) -> bool:
    """Whether what two ranks have under a key adds; else the larger counts."""
    one = torch.ones(())
    return bool(combine(key.rpartition(".")[2], one, one) == 2)
