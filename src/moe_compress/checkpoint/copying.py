"""Move bytes from file to file without holding them: in the kernel if it can, else through a small buffer."""

import os
from collections.abc import Callable, Iterable, Iterator

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


def _copy_in_kernel(source: int, start: int, num_bytes: int, destination: int) -> int:
    """Return how many bytes the kernel copied, 0 if it cannot.

    `copy_file_range` refuses two kinds of file system; Linux's `sendfile` goes between any two.
    """
    for copy in (_copy_file_range, _send_file):
        try:
            if copied := copy(source, start, num_bytes, destination):
                return copied
        except OSError:  # a real fault shows again in the buffered copy, and is raised there
            continue
    return 0


def _copy_file_range(source: int, start: int, num_bytes: int, destination: int) -> int:
    call: Callable[..., int] | None = getattr(os, "copy_file_range", None)
    return call(source, destination, num_bytes, offset_src=start) if call else 0


def _send_file(source: int, start: int, num_bytes: int, destination: int) -> int:
    call: Callable[..., int] | None = getattr(os, "sendfile", None)
    return call(destination, source, start, num_bytes) if call else 0


def read_bytes(source: int, start: int, num_bytes: int, name: str) -> bytes:
    """Return exactly `num_bytes` from an open file.

    Raises:
        CheckpointError: if the file ends before.
    """
    content = bytearray(num_bytes)
    read_into(source, start, memoryview(content), name)
    return bytes(content)


def read_into(source: int, start: int, buffer: memoryview, name: str) -> None:
    """Fill a buffer from an open file.

    Raises:
        CheckpointError: if the file ends before the buffer is full.
    """
    while buffer:
        num_bytes = os.preadv(source, [buffer], start)
        if not num_bytes:
            raise CheckpointError(
                f"{name} ends at byte {start}, {len(buffer)} bytes early; it changed while it was read, run again"
            )
        start += num_bytes
        buffer = buffer[num_bytes:]


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
