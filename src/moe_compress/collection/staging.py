"""Host memory that tensors pass through on their way to a device, or to another dtype: the same for all of them.

For a GPU its pages are locked: from others it copies at a fraction of its speed, and locking those of every tensor
would cost more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from moe_compress.collection.ranges import RangeReader

_PIECE = 1 << 20
"""Bytes of a tensor that are read at a time, or one entry along its first axis if that is more."""


class Staging:
    """Reads tensors of a checkpoint into one piece of host memory, so that each is there until the next is read.

    Args:
        reader: the checkpoint's tensors.
        device: where they are copied to from here.
    """

    def __init__(self, reader: RangeReader, device: torch.device) -> None:
        self._reader, self._is_locked = reader, device.type == "cuda"
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """Return a tensor as it is on disk, or one entry along its first axis.

        Raises:
            CheckpointError: if its dtype is none of torch's, or its shard vanished or changed.
        """
        shape = self._reader[name].shape
        return self._read(name, shape if index is None else shape[1:], index or 0)

    def pieces(self, name: str) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield where some entries along a tensor's first axis stand in it, and their values as they are on disk.

        Raises:
            CheckpointError: if its dtype is none of torch's, or its shard vanished or changed.
        """
        shape, num_bytes = self._reader[name].shape, self._reader[name].num_bytes
        if num_bytes <= _PIECE:
            yield ..., self.read(name)
            return
        count = max(1, _PIECE * shape[0] // num_bytes)
        for start in range(0, shape[0], count):
            entries = slice(start, min(start + count, shape[0]))
            yield entries, self._read(name, (entries.stop - start, *shape[1:]), start)

    def _read(self, name: str, shape: tuple[int, ...], first: int) -> torch.Tensor:
        dtype = self._reader.dtype_of(name)
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if num_bytes > len(self._bytes):
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._is_locked)
        place = self._bytes[:num_bytes].view(dtype).view(shape)
        self._reader.read_into(name, place, first)
        return place
