"""Prove that the written files hold what was planned, in other threads, while the next file is copied.

Every byte is read back and compared with the source it was copied from, or computed once more. What is read back
comes from the kernel's cache as a rule: this proves that the right bytes were handed to the kernel, which then
reports a failing disk at `fsync`; it cannot prove what a disk that lies will return after a power cut.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from moe_compress.checkpoint.copying import read_bytes, read_into
from moe_compress.checkpoint.files import SourceFiles, stamp_file
from moe_compress.checkpoint.jobs import ByteRange, CheckpointRewrite, ShardPlan
from moe_compress.checkpoint.pieces import Placed, compute_blocks, place_pieces
from moe_compress.errors import CheckpointError

_NUM_THREADS = 2
_BATCH_BYTES = 16 << 20  # what one thread compares at a stretch
_BUFFER_BYTES = 256 << 10  # two of them stay in a core's own cache


class Proof:
    """Compares each finished file with what it is made of; a context manager, because it owns threads.

    Args:
        rewrite: what was to be written.
        folder: where it is written.
    """

    def __init__(self, rewrite: CheckpointRewrite, folder: Path):
        self._rewrite, self._folder = rewrite, folder
        self._comparing = ThreadPoolExecutor(_NUM_THREADS)
        self._syncing = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []
        self._stamps: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> "Proof":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for pool in (self._comparing, self._syncing):
            pool.shutdown(cancel_futures=True)

    def begin(self, shard: ShardPlan) -> None:
        """Start to compare a file that is complete and to flush it to disk, once the one before is proven.

        Raises:
            CheckpointError: if an earlier file does not hold what was planned.
        """
        self._wait()
        path = self._folder / shard.file
        self._stamps[shard.file] = stamp_file(path)
        self._waiting = [
            self._comparing.submit(_compare, self._rewrite.source, path, batch) for batch in _batches(shard)
        ]
        self._waiting += [
            self._comparing.submit(_compare_header, path, shard.header),
            self._syncing.submit(_sync, path),
        ]

    def finish(self) -> None:
        """Return when everything is proven and on disk, and nothing was touched since.

        Raises:
            CheckpointError: if a file does not hold what was planned, or the source changed since it was planned.
        """
        self._wait()
        for shard in self._rewrite.shards:
            if stamp_file(self._folder / shard.file) != self._stamps[shard.file]:  # or a file system set its time
                self.begin(shard)
                self._wait()
        for file, stamp in self._rewrite.source_stamps.items():
            if stamp_file(self._rewrite.source / file) != stamp:
                raise CheckpointError(
                    f"{self._rewrite.source / file} changed while it was read; run again when nothing writes it"
                )

    def _wait(self) -> None:
        while self._waiting:
            self._waiting.pop().result()


def _batches(shard: ShardPlan) -> Iterator[list[Placed]]:
    """Yield a file's pieces in lists of a good size for one thread, long ranges cut."""
    batch: list[Placed] = []
    filled = 0
    for placed in place_pieces(shard):
        for part in _cut(placed):
            batch.append(part)
            filled += part.piece.num_bytes
            if filled >= _BATCH_BYTES:
                yield batch
                batch, filled = [], 0
    yield batch


def _cut(placed: Placed) -> Iterator[Placed]:
    """Yield a range in parts of at most a batch, and a computed piece as it is."""
    piece = placed.piece
    if not isinstance(piece, ByteRange):
        yield placed
        return
    for offset in range(0, piece.num_bytes, _BATCH_BYTES):
        length = min(_BATCH_BYTES, piece.num_bytes - offset)
        yield replace(
            placed, start=placed.start + offset, piece=ByteRange(piece.file, piece.start + offset, length)
        )


def _compare(source: Path, path: Path, batch: list[Placed]) -> None:
    """Compare pieces of a written file with the source's bytes.

    Raises:
        CheckpointError: if one differs.
    """
    buffers = bytearray(_BUFFER_BYTES), bytearray(_BUFFER_BYTES)
    with SourceFiles(source) as sources, path.open("rb", buffering=0) as written:
        for placed in batch:
            if isinstance(placed.piece, ByteRange):
                descriptor = sources.descriptor(placed.piece.file)
                _compare_range(descriptor, placed.piece, written.fileno(), placed.start, path.name, buffers)
            else:
                start = placed.start
                for block in compute_blocks(placed.piece, placed.dtype, sources.descriptor):
                    if read_bytes(written.fileno(), start, len(block), path.name) != block:
                        _refuse(path.name, start, "what was computed for it")
                    start += len(block)


def _compare_range(
    source: int, piece: ByteRange, written: int, start: int, name: str, buffers: tuple[bytearray, bytearray]
) -> None:
    old, new = buffers
    for offset in range(0, piece.num_bytes, len(old)):
        length = min(len(old), piece.num_bytes - offset)
        read_into(source, piece.start + offset, memoryview(old)[:length], piece.file)
        read_into(written, start + offset, memoryview(new)[:length], name)
        # whole bytearrays compare as fast as memory is read, views byte by byte
        if old != new if length == len(old) else old[:length] != new[:length]:
            _refuse(name, start + offset, f"byte {piece.start + offset} of {piece.file}")


def _compare_header(path: Path, header: bytes) -> None:
    with path.open("rb", buffering=0) as written:
        if read_bytes(written.fileno(), 0, len(header), path.name) != header:
            _refuse(path.name, 0, "the planned header")


def _refuse(name: str, start: int, origin: str) -> None:
    raise CheckpointError(
        f"{name} as written differs from {origin} within the stretch that begins at byte {start}; "
        "the source was changed meanwhile, or memory or disk fail: check them and run again"
    )


def _sync(path: Path) -> None:
    with path.open("rb", buffering=0) as written:
        os.fsync(written.fileno())
