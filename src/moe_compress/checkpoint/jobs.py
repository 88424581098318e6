"""What a rewrite will write, to the byte: ranges to copy, average or decode, the files they end up in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_compress.checkpoint.dequantise import MatrixCode
from moe_compress.checkpoint.files import SINGLE_FILE, Stamp
from moe_compress.checkpoint.header import write_header
from moe_compress.checkpoint.neurons import NeuronAxis
from moe_compress.types import TensorInfo

if TYPE_CHECKING:
    from moe_compress.checkpoint.alignment import Alignment


@dataclass(frozen=True)
class ByteRange:
    """Bytes of a source file that are copied as they are."""

    file: str
    start: int
    num_bytes: int


@dataclass(frozen=True)
class Mean:
    """Equally long source ranges that become one, averaged element by element with weights that sum to 1.

    Attributes:
        ranges: where they lie.
        weights: one per range.
        epsilon: standard deviation of the normal noise that is added.
        seed: of the noise.
    """

    ranges: tuple[ByteRange, ...]
    weights: tuple[float, ...]
    epsilon: float = 0.0
    seed: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The size of the average."""
        return self.ranges[0].num_bytes


@dataclass(frozen=True)
class CodedMatrix:
    """A quantised matrix as it lies in source files."""

    code: MatrixCode
    codes: ByteRange
    scales: ByteRange


@dataclass(frozen=True)
class Decoded:
    """Quantised source matrices of one shape, decoded and averaged in float32, then rounded to BF16 once."""

    matrices: tuple[CodedMatrix, ...]
    weights: tuple[float, ...]

    @property
    def num_bytes(self) -> int:
        """The size of the average."""
        rows, columns = self.matrices[0].code.shape
        return 2 * rows * columns


@dataclass(frozen=True, eq=False)
class Aligned:
    """One expert's tensor, averaged once each member's neurons stand in the heaviest member's order.

    Attributes:
        parts: the members and their weights.
        dtype: that of the source and the new tensor; of quantised ones the new tensor's.
        shape: of one expert's tensor.
        neurons: where its neurons lie.
        alignment: shared by all tensors of the new expert; knows the orders.
    """

    parts: Mean | Decoded
    dtype: str
    shape: tuple[int, ...]
    neurons: NeuronAxis
    alignment: "Alignment"

    @property
    def num_bytes(self) -> int:
        """The size of the average."""
        return self.parts.num_bytes


Piece = ByteRange | Mean | Decoded | Aligned


@dataclass(frozen=True)
class TensorJob:
    """One tensor to write: its pieces one after the other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @cached_property
    def num_bytes(self) -> int:
        """Its size in the new checkpoint."""
        return sum(piece.num_bytes for piece in self.pieces)


@dataclass(frozen=True)
class ShardPlan:
    """One file to write: a header, then the tensors in order."""

    file: str
    jobs: tuple[TensorJob, ...]

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes."""
        return write_header((job.name, job.dtype, job.shape, job.num_bytes) for job in self.jobs)

    @property
    def num_bytes(self) -> int:
        """The file's size."""
        return len(self.header) + sum(job.num_bytes for job in self.jobs)


@dataclass(frozen=True)
class CheckpointRewrite:
    """A checkpoint that is planned from names alone and not yet written.

    Attributes:
        source: the folder the bytes come from.
        config: the new `config.json`.
        shards: the files to write.
        plan_digest: identity of the compression plan it carries out.
        source_stamps: source file -> what changes when it is written, taken before its header was read.
        left_behind: files beside the source's weights that would not be true of the new ones.
    """

    source: Path
    config: Mapping[str, Any]
    shards: tuple[ShardPlan, ...]
    plan_digest: str
    source_stamps: Mapping[str, Stamp] = field(default_factory=dict)
    left_behind: frozenset[str] = frozenset()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor as the written headers must describe it."""
        infos = {}
        for shard in self.shards:
            start = len(shard.header)
            for job in shard.jobs:
                infos[job.name] = TensorInfo(job.name, job.dtype, job.shape, shard.file, start, job.num_bytes)
                start += job.num_bytes
        return infos

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all weight files, headers included."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def index(self) -> dict[str, Any] | None:
        """The content of the shard index, None when one file holds everything."""
        if len(self.shards) == 1:
            return None
        total = sum(job.num_bytes for shard in self.shards for job in shard.jobs)
        places = {name: info.file for name, info in sorted(self.tensors.items())}
        return {"metadata": {"total_size": total}, "weight_map": places}


def name_shard(number: int, count: int) -> str:
    """Return the file name of shard `number` (from 1) of `count`."""
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
