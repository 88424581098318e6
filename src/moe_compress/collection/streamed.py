"""Collect the statistics of a model of any size: one decoder layer at a time, every batch through each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moe_compress.collection.batches import Batch
from moe_compress.collection.observe import observe
from moe_compress.collection.ranges import RangeReader
from moe_compress.collection.replay import LayerOutput, Replay
from moe_compress.collection.sums import RoutingSums
from moe_compress.collection.weights import WeightLoader, install, remove
from moe_compress.families.conversion import build_skeleton
from moe_compress.types import Encoding, MoELayout, TensorInfo


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint as its headers describe it.

    Attributes:
        folder: the folder.
        config: its `config.json`.
        tensors: tensor name -> where it lies.
        shapes: name -> shape of every weight as it would be unquantised.
        encodings: name a weight would have unquantised -> how it is stored.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    shapes: Mapping[str, tuple[int, ...]]
    encodings: Mapping[str, Encoding] = field(default_factory=dict)


class StreamedModel:
    """A model without weights that brings in one decoder layer at a time, the next while this one computes.

    Args:
        files: the checkpoint.
        dtype: what it computes in.
        device: where it computes.
    """

    def __init__(self, files: CheckpointFiles, dtype: torch.dtype, device: torch.device) -> None:
        self.model = build_skeleton(files.config, dtype)
        self.device = device
        self.reader = RangeReader(files.folder, files.tensors)
        self.loader = WeightLoader(self.model, self.reader, files.shapes, files.encodings, dtype, device)
        self.replay = Replay(self.model)
        self._load_outside_when_called()

    def layers(self, first: int) -> Any:
        """Yield each decoder layer's index from `first` on, with its weights in memory until the next is asked for."""
        with ThreadPoolExecutor(1, "read-layer") as pool:
            coming = pool.submit(self._load_layer, first)
            for index in range(first, len(self.replay)):
                values = coming.result()
                install(self.model, values)
                names = list(values)
                del values, coming
                if index + 1 < len(self.replay):
                    coming = pool.submit(self._load_layer, index + 1)
                yield index
                remove(self.model, names)

    def _load_layer(self, index: int) -> dict[str, torch.Tensor]:
        return self.loader.load(self.loader.assemblies_below(f"{self.replay.path}.{index}"))

    def _load_outside_when_called(self) -> None:
        """Bring in what lies outside the decoder layers when it is first called: what is never called stays out."""
        for name, module in self.model.named_modules():
            for own, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[own] = buffer.to(self.device)
            if f"{name}.".startswith(f"{self.replay.path}.") or not module._parameters:
                continue
            names = [f"{name}.{own}" for own in (*module._parameters, *module._buffers)]
            self._load_when_called(module, [a for a in self.loader.assemblies_below(name) if a.target in names])

    def _load_when_called(self, module: torch.nn.Module, assemblies: Any) -> None:
        def load(*_: Any) -> None:
            handle.remove()
            install(self.model, self.loader.load(assemblies))

        handle = module.register_forward_pre_hook(load)


def run_streamed(
    streamed: StreamedModel, domains: Mapping[str, Sequence[Batch]], layout: MoELayout
) -> dict[str, RoutingSums]:
    sums = {domain: RoutingSums(layout) for domain in domains}
    outputs: dict[tuple[str, int], LayerOutput] = {}
    current: list[str] = []
    with torch.inference_mode(), observe(streamed.model, lambda row, batch: sums[current[0]].add(row, batch)) as see:
        for index in streamed.layers(0):
            for domain, batches in domains.items():
                current[:] = [domain]
                for number, batch in enumerate(batches):
                    see(on_device := batch.to(streamed.device))
                    before = outputs.pop((domain, number), None)
                    outputs[domain, number] = streamed.replay.run(index, on_device, before)
    return sums
