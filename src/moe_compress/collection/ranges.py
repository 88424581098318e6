"""Tensors read by their range of a shard, straight into the memory they are for; the bytes are counted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path

import torch

from moe_compress.errors import CheckpointError
from moe_compress.types import TensorInfo

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class RangeReader:
    """Reads tensors of a checkpoint folder.

    Args:
        folder: the checkpoint.
        tensors: tensor name -> where it lies, from the headers.

    Attributes:
        num_bytes: bytes of weights read so far.
        stamps: shard -> size and time of change when the reader was made.

    Raises:
        CheckpointError: if a shard is not there.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
        self._folder, self._tensors = folder, tensors
        self.stamps = {file: self._stamp(file) for file in sorted({info.file for info in tensors.values()})}
        self.num_bytes = 0
        self._open_file = ""
        self._stream: FileIO | None = None

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def dtype_of(self, name: str) -> torch.dtype:
        """Return a tensor's dtype on disk.

        Raises:
            CheckpointError: if it is none of torch's.
        """
        dtype = self._tensors[name].dtype
        if dtype not in TORCH_DTYPES:
            raise CheckpointError(
                f"tensor '{name}' has dtype {dtype}, which cannot be computed with; convert the checkpoint"
            )
        return TORCH_DTYPES[dtype]

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """Return a tensor in host memory as it is on disk, or one entry along its first axis.

        Raises:
            CheckpointError: if its dtype is none of torch's, or its shard vanished or changed.
        """
        shape = self._tensors[name].shape
        value = torch.empty(shape if index is None else shape[1:], dtype=self.dtype_of(name))
        self.read_into(name, value, index or 0)
        return value

    def read_into(self, name: str, place: torch.Tensor, first: int = 0) -> None:
        """Read bytes into contiguous host memory of the tensor's dtype: all, or entries from `first` on.

        Raises:
            CheckpointError: if its shard vanished or changed since the start.
        """
        info = self._tensors[name]
        if not place.numel():
            return
        view = memoryview(place.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        try:
            stream = self._open(info.file)
            stream.seek(info.start + (first * info.num_bytes // info.shape[0] if first else 0))
            while done < len(view) and (count := stream.readinto(view[done:])):
                done += count
        except OSError as error:
            raise self._lost(info.file, str(error)) from error
        if done < len(view):
            raise self._lost(info.file, f"it ends {len(view) - done} bytes early")
        self.num_bytes += done

    def bytes_of(self, names: Iterable[str]) -> int:
        """Return how many bytes some tensors have on disk."""
        return sum(self._tensors[name].num_bytes for name in names)

    def close(self) -> None:
        """Close the shard that was read last; reading opens it again, and looks whether it changed."""
        if self._stream is not None:
            self._stream.close()
        self._open_file, self._stream = "", None

    def _open(self, file: str) -> FileIO:
        if self._stream is None or self._open_file != file:
            self.close()
            if self._stamp(file) != self.stamps[file]:
                raise self._lost(file, "it is not the file it was at the start")
            self._open_file, self._stream = file, open(self._folder / file, "rb", buffering=0)  # noqa: SIM115
        return self._stream

    def _stamp(self, file: str) -> tuple[int, int]:
        try:
            status = os.stat(self._folder / file)
        except OSError as error:
            raise self._lost(file, str(error)) from error
        return status.st_size, status.st_mtime_ns

    def _lost(self, file: str, why: str) -> CheckpointError:
        return CheckpointError(
            f"shard {self._folder / file} can no longer be read ({why}); put it back and run the same command "
            "again, which goes on from the last finished layer"
        )
