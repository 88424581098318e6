"""Move bytes from file to file without holding them: in the kernel if it can, else through a small buffer."""

import os
from collections.abc import Iterable, Iterator

from moe_compress.checkpoint.jobs import ByteRange, Piece
from moe_compress.errors import CheckpointError

_BUFFER_BYTES = 8 << 20
_KERNEL_BYTES = 256 << 20


def copy_bytes(source: int, start: int, num_bytes: int, destination: int, name: str) -> None:
    """Append a range of one open file to another.

    Args:
        source: descriptor to read.
        start: first byte to read.
        num_bytes: how many.
        destination: descriptor to write at its current position.
        name: the source's name, for an error.

    Raises:
        CheckpointError: if the source ends too early.
    """
    end = start + num_bytes
    while start < end:
        copied = _copy_in_kernel(source, start, min(end - start, _KERNEL_BYTES), destination)
        if not copied:  # not between these file systems, or the file ended
            content = read_bytes(source, start, min(end - start, _BUFFER_BYTES), name)
            write_bytes(destination, content)
            copied = len(content)
        start += copied


def read_bytes(source: int, start: int, num_bytes: int, name: str) -> bytes:
    """Return exactly `num_bytes` from an open file.

    Raises:
        CheckpointError: if the file ends before.
    """
    parts = []
    while num_bytes:
        part = os.pread(source, num_bytes, start)
        if not part:
            raise CheckpointError(
                f"{name} ends at byte {start}, {num_bytes} bytes early; it changed while it was read, run again"
            )
        parts.append(part)
        start += len(part)
        num_bytes -= len(part)
    return b"".join(parts)


def write_bytes(destination: int, content: bytes) -> None:
    """Write all of `content` to an open file."""
    view = memoryview(content)
    while view:
        view = view[os.write(destination, view) :]


def join_ranges(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces with neighbours that are one stretch of a source file joined, to copy it in one go."""
    waiting: Piece | None = None
    for piece in pieces:
        if waiting is not None:
            joined = _join(waiting, piece)
            if joined is None:
                yield waiting
            piece = joined or piece
        waiting = piece
    if waiting is not None:
        yield waiting


def _join(first: Piece, second: Piece) -> ByteRange | None:
    """Return two ranges as one if they touch."""
    if not isinstance(first, ByteRange) or not isinstance(second, ByteRange) or first.file != second.file:
        return None
    if first.start + first.num_bytes != second.start:
        return None
    return ByteRange(first.file, first.start, first.num_bytes + second.num_bytes)


def _copy_in_kernel(source: int, start: int, num_bytes: int, destination: int) -> int:
    """Return how many bytes the kernel copied, 0 if it cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, destination, num_bytes, offset_src=start)
    except OSError:
        return 0
