"""A model's weights brought into memory part by part, each tensor copied once, into the place where it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from threading import Lock
from typing import Any

import torch

from moe_compress.collection.dequantise import dequantise
from moe_compress.collection.ranges import TORCH_DTYPES, RangeReader
from moe_compress.collection.staging import Staging
from moe_compress.errors import CheckpointError
from moe_compress.families.conversion import Assembly, Slot, dtypes_in_memory, list_assemblies
from moe_compress.types import Encoding


class WeightLoader:
    """Reads the values of a meta model's tensors, by module.

    Args:
        model: a model without weights.
        reader: the checkpoint's tensors.
        shapes: name -> shape of every weight as it would be unquantised.
        encodings: name the weight would have unquantised -> how it is stored.
        dtype: what the model computes in.
        device: where the values go.
    """

    def __init__(
        self,
        model: Any,
        reader: RangeReader,
        shapes: Mapping[str, tuple[int, ...]],
        encodings: Mapping[str, Encoding],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.model, self.reader, self.device = model, reader, device
        self._staging = Staging(reader, device)
        self._plain_shapes, self._encodings = shapes, encodings
        self._assemblies = list_assemblies(model, shapes)
        self._dtypes = dtypes_in_memory(model, dtype)
        self._lock = Lock()  # embeddings are asked for while another thread reads a layer
        self._spare: dict[tuple[tuple[int, ...], torch.dtype], list[torch.Tensor]] = {}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def assemblies_below(self, prefix: str) -> list[Assembly]:
        """Return what makes up the tensors of one module and the modules in it."""
        return [assembly for assembly in self._assemblies if assembly.target.startswith(f"{prefix}.")]

    def bytes_in_memory(self, prefix: str) -> int:
        """Return the bytes that a module's tensors need once they are loaded."""
        return sum(
            torch.Size(shape).numel() * self._dtypes[name].itemsize
            for name, shape in self._shapes.items()
            if name.startswith(f"{prefix}.")
        )

    def load(self, assemblies: Iterable[Assembly]) -> dict[str, torch.Tensor]:
        """Return in-memory tensor name -> value, on the device.

        Raises:
            CheckpointError: if a shard vanished or a tensor has a wrong shape.
        """
        values: dict[str, torch.Tensor] = {}
        assemblies = list(assemblies)
        fitting = {self._kind(assembly.target) for assembly in assemblies}
        with self._lock, closing(self.reader):
            self._spare = {kind: spare for kind, spare in self._spare.items() if kind in fitting}
            for assembly in assemblies:
                if assembly.slots is None:
                    dtype = self._dtypes[assembly.target]
                    parts = {name: self._read_whole(name, dtype) for name in assembly.names}
                    values.update(assembly.convert(self.model, parts))
                else:
                    values[assembly.target] = self._fill(assembly.target, assembly.slots)
            self._spare.clear()
        return values

    def recycle(self, values: Iterable[torch.Tensor]) -> None:
        """Let the next `load` overwrite these: fresh memory costs the system more than the reading does.

        Not while another `load` is under way, which would let go of them.
        """
        for value in values:
            self._spare.setdefault((tuple(value.shape), value.dtype), []).append(value)

    def _kind(self, target: str) -> tuple[tuple[int, ...], torch.dtype]:
        return self._shapes[target], self._dtypes[target]

    def _fill(self, target: str, slots: tuple[Slot, ...]) -> torch.Tensor:
        """Return an in-memory tensor with each checkpoint tensor read, or decoded, into its place."""
        shape, dtype = self._kind(target)
        spare = self._spare.get((shape, dtype))
        value = spare.pop() if spare else torch.empty(shape, dtype=dtype, device=self.device)
        for slot in slots:
            place = self._place_of(slot, value)
            if slot.name in self._encodings:
                self._decode_into(self._encodings[slot.name], place)
            else:
                self._read_into(slot.name, place)
        return value

    def _place_of(self, slot: Slot, value: torch.Tensor) -> torch.Tensor:
        """Return the part of an in-memory tensor that a checkpoint tensor fills.

        Raises:
            CheckpointError: if it has another shape.
        """
        shape, place = self._plain_shapes[slot.name], value
        if slot.index is not None:
            part = value[slot.index]
            place = part.narrow(slot.axis, slot.start, min(shape[slot.axis], part.shape[slot.axis] - slot.start))
        if tuple(place.shape) != shape:
            raise CheckpointError(
                f"tensor '{slot.name}' has shape {list(shape)} and does not fit into {list(value.shape)}; "
                "config.json and tensors must fit each other"
            )
        return place

    def _read_into(self, name: str, place: torch.Tensor) -> None:
        is_as_stored = TORCH_DTYPES.get(self.reader[name].dtype) == place.dtype
        if place.device.type == "cpu" and is_as_stored and place.is_contiguous():
            self.reader.read_into(name, place)
        else:
            for entries, values in self._staging.pieces(name):
                place[entries].copy_(values.to(self.device))

    def _decode_into(self, encoding: Encoding, place: torch.Tensor) -> None:
        """Write a de-quantised weight into its place, fused experts one at a time."""
        if place.dim() > 2:
            for index, part in enumerate(place):
                part.copy_(self._decode(encoding, place.dtype, index))
        else:
            place.copy_(self._decode(encoding, place.dtype))

    def _decode(self, encoding: Encoding, dtype: torch.dtype, index: int | None = None) -> torch.Tensor:
        codes = self._staging.read(encoding.codes, index).to(self.device)
        is_shared = self.reader[encoding.scales].shape[:1] != self.reader[encoding.codes].shape[:1]
        scales = self.reader.read(encoding.scales, None if is_shared else index).to(self.device)
        return dequantise(encoding, codes, scales, dtype)

    def _read_whole(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        if name in self._encodings:
            return self._decode(self._encodings[name], dtype)
        return self.reader.read(name).to(device=self.device, dtype=dtype)


def exchange(model: Any, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put tensors in the place of a model's parameters and buffers, and return by name those that were there.

    What is to come back, such as a tensor without memory, is kept rather than made anew: many small things made
    between large ones that come and go would leave ever more holes in the host's memory.
    """
    were = {}
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        if own in module._buffers:
            were[name], module._buffers[own] = module._buffers[own], value
        else:
            is_made = isinstance(value, torch.nn.Parameter)
            parameter = value if is_made else torch.nn.Parameter(value, requires_grad=False)
            were[name], module._parameters[own] = module._parameters[own], parameter
    return were
