"""What one decoder layer said of every batch, until the next layer has read it: in memory, on disk, or both."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from moe_compress.collection.replay import LayerOutput

_ALIGNMENT = 64
Place = dict[str, Any]


class HiddenStates:
    """Outputs of one layer in the order of the batches.

    Args:
        path: the file they are written to; None keeps them in memory alone.
        keep: whether they also stay in memory.
    """

    def __init__(self, path: Path | None, keep: bool) -> None:
        self._path, self._keep = path, keep or path is None
        self._kept: list[LayerOutput | None] = []
        self._places: list[Place] = []
        self._file = path.open("wb") if path else None
        self._map: mmap.mmap | None = None

    @classmethod
    def reopen(cls, path: Path, described: list[Place]) -> HiddenStates:
        """Return the outputs that `describe` described, read from their file."""
        states = cls.__new__(cls)
        states._path, states._keep, states._kept, states._file, states._map = path, False, [], None, None
        states._places = described
        return states

    def append(self, output: LayerOutput) -> None:
        """Add the next batch's output, which may lie on any device.

        Raises:
            OSError: if the disk is full.
        """
        output = output.to(torch.device("cpu"))
        if self._keep:
            self._kept.append(output)
        if self._file is not None:
            parts = [None if part is None else self._write(part) for part in output.parts]
            self._places.append({"parts": parts, "is_tuple": output.is_tuple})

    def take(self, number: int) -> LayerOutput:
        """Return a batch's output; one that is in memory is given away, since it is read once."""
        if self._keep:
            output, self._kept[number] = self._kept[number], None
            assert output is not None
            return output
        place = self._places[number]
        return LayerOutput(tuple(p and self._read(p) for p in place["parts"]), place["is_tuple"])

    def finish(self) -> list[Place]:
        """Flush the file to disk and return where each output lies in it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        return self._places

    def delete(self) -> None:
        """Give memory and disk back."""
        self._kept, self._map = [], None
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses what is still to be written
                self._file.close()
            self._file = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, part: torch.Tensor) -> Place:
        assert self._file is not None
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        start = self._file.tell()
        self._file.write(memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        return {"dtype": str(part.dtype).removeprefix("torch."), "shape": list(part.shape), "start": start}

    def _read(self, place: Place) -> torch.Tensor:
        if self._map is None:
            assert self._path is not None
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants it writable
        shape, dtype = place["shape"], getattr(torch, place["dtype"])
        count = torch.Size(shape).numel()
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=place["start"]).reshape(shape)
