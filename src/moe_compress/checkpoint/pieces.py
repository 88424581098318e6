"""What lies where in a file that is written, and the bytes of those pieces that are computed, not copied."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray

from moe_compress.checkpoint.alignment import average_aligned
from moe_compress.checkpoint.arithmetic import average, average_bytes, encode_floats
from moe_compress.checkpoint.copying import join_ranges, read_bytes
from moe_compress.checkpoint.dequantise import decode_slabs
from moe_compress.checkpoint.jobs import Aligned, CodedMatrix, Decoded, Mean, Piece, ShardPlan
from moe_compress.types import FloatArray

_MEAN_BYTES = 4 << 20  # read of each member at a time, at most
_MEMBERS_BYTES = 32 << 20  # read of all members at a time, at most
_WIDEST = 8  # bytes of the widest element; blocks are a multiple of it

Descriptor = Callable[[str], int]
"""Source file name -> open descriptor."""


@dataclass(frozen=True)
class Placed:
    """A piece and its first byte in the new file."""

    start: int
    piece: Piece
    dtype: str


def place_pieces(shard: ShardPlan) -> Iterator[Placed]:
    """Yield a file's pieces in order, with neighbouring ranges joined within one dtype."""
    start = len(shard.header)
    for dtype, same in groupby(shard.jobs, key=lambda job: job.dtype):
        for piece in join_ranges(chain.from_iterable(job.pieces for job in same)):
            yield Placed(start, piece, dtype)
            start += piece.num_bytes


def compute_blocks(piece: Mean | Decoded | Aligned, dtype: str, descriptor: Descriptor) -> Iterator[bytes]:
    """Yield the bytes of a computed piece a few megabytes at a time; of an aligned expert, a matrix at a time.

    Raises:
        CheckpointError: if a source file ends too early.
    """
    if isinstance(piece, Aligned):
        return iter([encode_floats(average_aligned(piece, descriptor), dtype)])
    return _average(piece, dtype, descriptor) if isinstance(piece, Mean) else _decode(piece, dtype, descriptor)


def _average(mean: Mean, dtype: str, descriptor: Descriptor) -> Iterator[bytes]:
    noise = _draw_noise(mean)
    step = max(min(_MEAN_BYTES, _MEMBERS_BYTES // len(mean.ranges)) // _WIDEST, 1) * _WIDEST
    for offset in range(0, mean.num_bytes, step):
        length = min(step, mean.num_bytes - offset)
        parts = [read_bytes(descriptor(r.file), r.start + offset, length, r.file) for r in mean.ranges]
        yield average_bytes(parts, mean.weights, dtype, noise)


def _draw_noise(mean: Mean) -> Callable[[int], FloatArray] | None:
    """Return what draws the next so many numbers of a piece's noise, the same ones each time it is read."""
    generator = np.random.default_rng(mean.seed)
    return (lambda count: generator.normal(0.0, mean.epsilon, count)) if mean.epsilon else None


def _decode(decoded: Decoded, dtype: str, descriptor: Descriptor) -> Iterator[bytes]:
    """Decode and average some rows at a time; matrices of one shape come in the same slabs."""
    for slabs in zip(*(_read_slabs(matrix, descriptor) for matrix in decoded.matrices), strict=True):
        values = slabs[0] if len(slabs) == 1 else average(slabs, decoded.weights)
        yield encode_floats(values, dtype)


def _read_slabs(matrix: CodedMatrix, descriptor: Descriptor) -> Iterator[NDArray[np.float32]]:
    codes, scales = matrix.codes, matrix.scales
    return decode_slabs(
        matrix.code,
        lambda offset, length: read_bytes(descriptor(codes.file), codes.start + offset, length, codes.file),
        read_bytes(descriptor(scales.file), scales.start, scales.num_bytes, scales.file),
    )
