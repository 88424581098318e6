"""Write a planned checkpoint so that it appears whole or not at all, whatever interrupts the process."""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from glob import escape
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_compress.checkpoint.arithmetic import average, average_bytes, encode_floats
from moe_compress.checkpoint.copying import copy_bytes, join_ranges, read_bytes, write_bytes
from moe_compress.checkpoint.dequantise import decode_slabs
from moe_compress.checkpoint.files import CONFIG, INDEX_FILE, list_companions, resolve_file
from moe_compress.checkpoint.index import read_tensors
from moe_compress.checkpoint.jobs import CheckpointRewrite, CodedMatrix, Decoded, Mean, Piece, ShardPlan, TensorJob
from moe_compress.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""

_MEAN_BYTES = 4 << 20  # of each member at a time; a multiple of every element's size


def write_checkpoint(rewrite: CheckpointRewrite, destination: Path, progress: Progress | None = None) -> None:
    """Write a checkpoint beside its destination, check it, and publish it with one rename.

    Whatever happens before the rename, nothing at `destination` exists and the unfinished folder has no
    `config.json` until everything else in it is on disk. Unfinished folders of killed runs are removed first.

    Args:
        rewrite: what to write.
        destination: the folder to create.
        progress: told how far it is.

    Raises:
        CheckpointError: if the destination exists or another run writes it, the disk is too full, the source
            changed, or what was written is not what was planned.
    """
    if destination.exists() or destination.is_symlink():
        raise CheckpointError(f"{destination} exists already; remove it or choose another folder")
    destination.parent.mkdir(parents=True, exist_ok=True)
    companions = list_companions(rewrite.source)
    with _partial_folder(destination) as partial:
        _check_space(rewrite, companions, destination.parent)
        _write_shards(rewrite, partial, progress)
        if rewrite.index is not None:
            _write_file(partial / INDEX_FILE, _as_json(rewrite.index))
        for name in companions:
            _copy_file(resolve_file(rewrite.source, name), partial / name)
        if read_tensors(partial) != rewrite.tensors:
            raise CheckpointError(f"{partial} does not hold the planned tensors; check the disk and run again")
        _sync_folder(partial)
        _write_file(partial / CONFIG, _as_json(rewrite.config))
        _sync_folder(partial)
        _publish(partial, destination)


@contextmanager
def _partial_folder(destination: Path) -> Iterator[Path]:
    """Yield a new folder beside the destination, the only one of its kind, gone if this run fails.

    Raises:
        CheckpointError: if another run is writing the same destination.
    """
    with _lock(destination):
        for leftover in destination.parent.glob(f".{escape(destination.name)}.partial-*"):
            shutil.rmtree(leftover)
        partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _lock(destination: Path) -> Iterator[None]:
    """Hold the right to write a destination; the kernel gives it back when a process is killed."""
    path = destination.with_name(f".{destination.name}.lock")
    with path.open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{destination} is being written by another run; wait for it") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _publish(partial: Path, destination: Path) -> None:
    try:
        os.rename(partial, destination)
    except OSError as error:
        raise CheckpointError(
            f"{destination} appeared while it was being written ({error.strerror}); remove it and run again"
        ) from error
    _sync_folder(destination.parent)


def _check_space(rewrite: CheckpointRewrite, companions: tuple[str, ...], folder: Path) -> None:
    needed = rewrite.num_bytes + sum((rewrite.source / name).stat().st_size for name in companions)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"the new checkpoint needs {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "free some space or choose another folder"
        )


def _write_shards(rewrite: CheckpointRewrite, partial: Path, progress: Progress | None) -> None:
    total, done = rewrite.num_bytes, 0
    for shard in rewrite.shards:
        for written in _write_shard(rewrite.source, shard, partial / shard.file):
            done += written
            if progress:
                progress(done, total)


def _write_shard(source: Path, shard: ShardPlan, path: Path) -> Iterator[int]:
    """Write one file and yield the sizes of what was written, piece by piece."""
    with ExitStack() as stack:
        destination = stack.enter_context(path.open("xb", buffering=0)).fileno()
        opened: dict[str, int] = {}

        def descriptor(file: str) -> int:
            if file not in opened:
                opened[file] = stack.enter_context(resolve_file(source, file).open("rb", buffering=0)).fileno()
            return opened[file]

        write_bytes(destination, shard.header)
        yield len(shard.header)
        for dtype, piece in _pieces(shard.jobs):
            if isinstance(piece, Mean):
                _write_mean(piece, dtype, descriptor, destination)
            elif isinstance(piece, Decoded):
                _write_decoded(piece, descriptor, destination)
            else:
                copy_bytes(descriptor(piece.file), piece.start, piece.num_bytes, destination, piece.file)
            yield piece.num_bytes
        os.fsync(destination)


def _pieces(jobs: tuple[TensorJob, ...]) -> Iterator[tuple[str, Piece]]:
    """Yield (dtype, piece) in file order, with neighbouring ranges joined within one dtype."""
    for dtype, same in groupby(jobs, key=lambda job: job.dtype):
        for piece in join_ranges(chain.from_iterable(job.pieces for job in same)):
            yield dtype, piece


def _write_mean(mean: Mean, dtype: str, descriptor: Callable[[str], int], destination: int) -> None:
    """Average a few megabytes at a time."""
    for offset in range(0, mean.num_bytes, _MEAN_BYTES):
        length = min(_MEAN_BYTES, mean.num_bytes - offset)
        parts = [read_bytes(descriptor(r.file), r.start + offset, length, r.file) for r in mean.ranges]
        write_bytes(destination, average_bytes(parts, mean.weights, dtype))


def _write_decoded(decoded: Decoded, descriptor: Callable[[str], int], destination: int) -> None:
    """Decode and average some rows at a time; matrices of one shape come in the same slabs."""
    for slabs in zip(*(_decode(matrix, descriptor) for matrix in decoded.matrices), strict=True):
        values = slabs[0] if len(slabs) == 1 else average(slabs, decoded.weights)
        write_bytes(destination, encode_floats(values, "BF16"))


def _decode(matrix: CodedMatrix, descriptor: Callable[[str], int]) -> Iterator[NDArray[np.float32]]:
    codes, scales = matrix.codes, matrix.scales
    return decode_slabs(
        matrix.code,
        lambda offset, length: read_bytes(descriptor(codes.file), codes.start + offset, length, codes.file),
        read_bytes(descriptor(scales.file), scales.start, scales.num_bytes, scales.file),
    )


def _copy_file(source: Path, destination: Path) -> None:
    with source.open("rb") as reader, destination.open("xb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
