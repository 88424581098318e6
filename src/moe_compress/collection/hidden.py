"""What one decoder layer said of every batch, until the next layer has read it: in memory, on disk, or both."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Executor, Future
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from moe_compress.collection.replay import LayerOutput
from moe_compress.errors import ResourceError

_ALIGNMENT = 64
_WAITING = 2
"""Outputs that may be on their way to the disk at once, where memory is too small to keep them."""
Place = dict[str, Any]


class HiddenStates:
    """Outputs of one layer in the order of the batches.

    Args:
        path: the file they are written to; None keeps them in memory alone.
        keep: whether they also stay in memory.
        writer: one thread, which writes while the model goes on computing; used if there is a path.
    """

    def __init__(self, path: Path | None, keep: bool, writer: Executor | None) -> None:
        self._path, self._keep, self._writer = path, keep or path is None, writer
        self._kept: list[LayerOutput | None] = []
        self._places: list[Place] = []
        self._waiting: deque[Future[None]] = deque(maxlen=_WAITING)
        self._error: Exception | None = None
        self._file: FileIO | None = None
        self._reader: FileIO | None = None

    @classmethod
    def reopen(cls, path: Path, described: list[Place]) -> HiddenStates:
        """Return the outputs that `finish` described, read from their file."""
        states = cls(path, keep=False, writer=None)
        states._places = described
        return states

    def append(self, output: LayerOutput) -> None:
        """Add the next batch's output, which may lie on any device.

        Raises:
            OSError: if the disk is full, for this output or one before.
        """
        output = output.to(torch.device("cpu"))
        if self._keep:
            self._kept.append(output)
        if self._writer is not None and self._path is not None:
            if not self._keep and len(self._waiting) == _WAITING:
                self._waiting[0].result()
            self._waiting.append(self._writer.submit(self._write, output))
        self._raise_error()

    def take(self, number: int) -> LayerOutput:
        """Return a batch's output; one that is in memory is given away, since it is read once.

        Raises:
            OSError: if the disk is full, for any output, or the file cannot be read.
            ResourceError: if the file is shorter than what was written to it.
        """
        if self._keep:
            output, self._kept[number] = self._kept[number], None
            assert output is not None
            return output
        if self._waiting:
            self._waiting[-1].result()
            self._raise_error()
        place = self._places[number]
        left = {(name, key): tuple(map(self._read, parts)) for name, key, parts in place["left"]}
        return LayerOutput(tuple(p and self._read(p) for p in place["parts"]), place["is_tuple"], left)

    def finish(self) -> list[Place]:
        """Flush the file to disk and return where each output lies in it; the writer's last task with it.

        Raises:
            OSError: if an output could not be written.
        """
        self._raise_error()
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        return self._places

    def close(self) -> None:
        """Read no more; what is on disk stays there."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def delete(self) -> None:
        """Give memory and disk back."""
        self.close()
        self._kept = []
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self, output: LayerOutput) -> None:
        assert self._path is not None
        try:
            if self._file is None:  # not before the first output: the file of two layers ago is gone by now
                self._file = self._path.open("wb", buffering=0)
            parts = [None if part is None else _write_part(self._file, part) for part in output.parts]
            left = [(*place, [_write_part(self._file, p) for p in own]) for place, own in output.left.items()]
        except Exception as error:  # without its place, those of all that follow would be another's
            self._error = self._error or error
        else:
            self._places.append({"parts": parts, "is_tuple": output.is_tuple, "left": left})

    def _read(self, place: Place) -> torch.Tensor:
        """Return a tensor in memory of its own: a file of many batches is larger than what could be mapped."""
        stored = torch.empty(place["shape"], dtype=getattr(torch, place["dtype"]))
        if self._reader is None:
            assert self._path is not None
            self._reader = self._path.open("rb", buffering=0)
        view = memoryview(stored.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        self._reader.seek(place["start"])
        done = 0
        while done < len(view) and (count := self._reader.readinto(view[done:])):
            done += count
        if done < len(view):
            raise ResourceError(
                f"{self._path} ends {len(view) - done} bytes before the end of a layer's output; remove the folder "
                "it is in and run the same command again, which starts anew"
            )
        return stored.permute(place["axes"])


def _write_part(file: FileIO, part: torch.Tensor) -> Place:
    """Write a tensor behind what is there and return where it lies.

    Its axes keep their order in memory: kernels may round otherwise where it is another.
    """
    start = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    file.seek(start)
    order = sorted(range(part.dim()), key=part.stride, reverse=True)
    stored = part.permute(order).contiguous()
    rest = memoryview(stored.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    while rest:
        rest = rest[file.write(rest) :]
    axes = [order.index(axis) for axis in range(part.dim())]
    dtype = str(part.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(stored.shape), "axes": axes, "start": start}
