"""Write a planned checkpoint so that it appears whole or not at all, whatever interrupts the process."""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from moe_compress.checkpoint.copying import copy_bytes, write_bytes
from moe_compress.checkpoint.files import CONFIG, INDEX_FILE, SourceFiles, list_companions, resolve_file
from moe_compress.checkpoint.index import read_tensors
from moe_compress.checkpoint.jobs import ByteRange, CheckpointRewrite, ShardPlan
from moe_compress.checkpoint.pieces import compute_blocks, place_pieces
from moe_compress.checkpoint.proof import Proof
from moe_compress.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all), from one thread at a time."""

_NUM_WRITERS = 2  # files written at once


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
            changed, what was written is not what was planned, or the operating system refuses.
    """
    if destination.exists() or destination.is_symlink():
        raise CheckpointError(f"{destination} exists already; remove it or choose another folder")
    destination.parent.mkdir(parents=True, exist_ok=True)
    companions = tuple(name for name in list_companions(rewrite.source) if name not in rewrite.left_behind)
    with _one_sentence(destination), _partial_folder(destination) as partial:
        _check_space(rewrite, companions, destination.parent)
        _write_shards(rewrite, partial, progress)
        if rewrite.index is not None:
            _write_file(partial / INDEX_FILE, _as_json(rewrite.index))
        for name in companions:
            (partial / name).parent.mkdir(exist_ok=True)
            _copy_file(resolve_file(rewrite.source, name), partial / name)
        if read_tensors(partial) != rewrite.tensors:
            raise CheckpointError(f"{partial} does not hold the planned tensors; check the disk and run again")
        for folder in {partial, *((partial / name).parent for name in companions)}:
            _sync_folder(folder)
        _write_file(partial / CONFIG, _as_json(rewrite.config))
        _sync_folder(partial)
        _publish(partial, destination)


@contextmanager
def _one_sentence(destination: Path) -> Iterator[None]:
    """Say what the operating system refused."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written ({error}); mend that and run again") from error


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
    with _open_locked(path, destination):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_locked(path: Path, destination: Path) -> BinaryIO:
    """Return the lock file, locked, once what is locked is what stands under its name.

    A run that ends unlinks its lock file, and another may have opened that file before: its lock would keep
    nobody out who comes later and makes a new file.
    """
    while True:
        stream = path.open("wb")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except BlockingIOError as error:
            stream.close()
            raise CheckpointError(f"{destination} is being written by another run; wait for it") from error
        except FileNotFoundError:
            pass
        stream.close()


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
    """Write all weight files, each proven while the next are copied; return when all are proven and on disk."""
    written = _Written(rewrite.num_bytes, progress)
    with Proof(rewrite, partial) as proof, ThreadPoolExecutor(_NUM_WRITERS) as writers:
        try:
            tasks = [
                writers.submit(_write_shard, rewrite.source, shard, partial / shard.file, written)
                for shard in rewrite.shards
            ]
            for shard, task in zip(rewrite.shards, tasks, strict=True):
                task.result()
                proof.begin(shard)
            proof.finish()
        finally:
            written.is_stopped = True
            writers.shutdown(cancel_futures=True)


class _Written:
    """Adds up what several threads write and tells how far they are.

    Attributes:
        is_stopped: whether one of them failed, so that the others need not go on.
    """

    def __init__(self, total: int, progress: Progress | None):
        self._total, self._done, self._progress = total, 0, progress
        self._lock = Lock()
        self.is_stopped = False

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            if self._progress:
                self._progress(self._done, self._total)


def _write_shard(source: Path, shard: ShardPlan, path: Path, written: _Written) -> None:
    """Write one file, piece by piece."""
    with SourceFiles(source) as sources, path.open("xb", buffering=0) as stream:
        destination = stream.fileno()
        write_bytes(destination, shard.header)
        written.add(len(shard.header))
        for placed in place_pieces(shard):
            piece = placed.piece
            if isinstance(piece, ByteRange):
                copy_bytes(sources.descriptor(piece.file), piece.start, piece.num_bytes, destination, piece.file)
            else:
                for block in compute_blocks(piece, placed.dtype, sources.descriptor):
                    write_bytes(destination, block)
            written.add(piece.num_bytes)
            if written.is_stopped:
                return


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
