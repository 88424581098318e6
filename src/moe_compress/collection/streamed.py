"""Collect the statistics of a model of any size: one decoder layer at a time, every batch through each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from moe_compress.collection.adding import Adding
from moe_compress.collection.batches import Batch
from moe_compress.collection.observe import observe
from moe_compress.collection.progress import Progress
from moe_compress.collection.ranges import RangeReader
from moe_compress.collection.replay import Replay
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.sums import RoutingSums
from moe_compress.collection.weights import WeightLoader, exchange
from moe_compress.families.building import build_skeleton
from moe_compress.families.quantised import PlainView, view_plain
from moe_compress.types import TensorInfo


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint as its headers describe it.

    Attributes:
        folder: the folder.
        config: its `config.json`.
        tensors: tensor name -> where it lies.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @cached_property
    def plain(self) -> PlainView:
        """What the checkpoint would be unquantised."""
        return view_plain(self.config, {name: info.shape for name, info in self.tensors.items()})

    @property
    def undecoded(self) -> tuple[str, ...]:
        """Quantised weights in formats that are not decoded here, sorted."""
        return tuple(sorted(set(self.plain.parts.values()) - set(self.plain.encodings)))


class StreamedModel:
    """A model without weights that brings in one decoder layer at a time, the next while this one computes.

    A GPU copies layers on a stream of its own, or each tensor would wait for all that is queued to be computed.
    Their memory belongs to that stream, so it is given back only once nothing that computes can still read it.

    Args:
        files: the checkpoint.
        dtype: what it computes in.
        device: where it computes.
    """

    def __init__(self, files: CheckpointFiles, dtype: torch.dtype, device: torch.device) -> None:
        plain = files.plain
        self.model = build_skeleton(plain.config, dtype)
        self.files, self.dtype, self.device = files, dtype, device
        self.reader = RangeReader(files.folder, files.tensors)
        self.loader = WeightLoader(self.model, self.reader, plain.shapes, plain.encodings, dtype, device)
        self.replay = Replay(self.model)
        is_cuda = device.type == "cuda"
        self._copying = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._load_outside_when_called()

    @property
    def num_layers(self) -> int:
        """Decoder layers, with routed experts or without."""
        return len(self.replay)

    def layers(self, first: int) -> Iterator[int]:
        """Yield each decoder layer from `first` on, its weights in memory until the next is asked for.

        The next layer is read meanwhile, so that two are in memory at most.
        """
        if first >= self.num_layers:
            return
        with ThreadPoolExecutor(1, "read-layer") as pool:
            done: list[torch.Tensor] = []
            coming = pool.submit(self._load_layer, first)
            for index in range(first, self.num_layers):
                empty = exchange(self.model, coming.result())
                if index + 1 < self.num_layers:
                    self.loader.recycle(done)
                    coming = pool.submit(self._load_layer, index + 1)
                done.clear()
                yield index
                self._wait_for_computing()
                done = list(exchange(self.model, empty).values())

    def layer_bytes(self) -> list[int]:
        """Return the memory each decoder layer's weights need."""
        return [self.loader.bytes_in_memory(f"{self.replay.path}.{index}") for index in range(self.num_layers)]

    def outside_bytes(self) -> int:
        """Return the memory of what lies outside the decoder layers and is needed before them: the embeddings."""
        return sum(value.nbytes for value in self.model.get_input_embeddings().parameters())

    def read_bytes(self) -> int:
        """Return the bytes of the checkpoint, of which one pass reads what it needs."""
        return self.reader.bytes_of(self.files.tensors)

    def shards(self) -> list[Path]:
        """Return the weight files."""
        return [self.files.folder / file for file in self.reader.stamps]

    def _load_layer(self, index: int) -> dict[str, torch.Tensor]:
        assemblies = self.loader.assemblies_below(f"{self.replay.path}.{index}")
        if self._copying is None:
            return self.loader.load(assemblies)
        with torch.cuda.stream(self._copying):
            values = self.loader.load(assemblies)
        self._copying.synchronize()
        return values

    def _wait_for_computing(self) -> None:
        if self._copying is not None:
            torch.cuda.current_stream(self.device).synchronize()

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
            exchange(self.model, self.loader.load(assemblies))

        handle = module.register_forward_pre_hook(load)


def collect_streamed(
    streamed: StreamedModel,
    domains: Mapping[str, Sequence[Batch]],
    sums: Mapping[str, RoutingSums],
    point: ResumePoint,
    progress: Progress,
) -> None:
    """Add up each domain's sums; every batch of every domain goes through a layer while its weights are there.

    Args:
        streamed: the model.
        domains: name -> batches.
        sums: domain -> what its batches are added to.
        point: where a killed run goes on, and where outputs lie between layers; the caller closes it.
        progress: is told of each batch and layer.

    Raises:
        UnsupportedModelError: if the family cannot be streamed.
        CheckpointError: if a shard vanished, or weights give values that are not finite.
        StatisticsError: if the experts give values that are not finite.
        ResourceError: if the disk or memory is full; what was committed stays in all cases.
    """
    work = [(domain, batch) for domain, batches in domains.items() for batch in batches]
    adding = Adding(sums)
    try:
        first = point.restore()
        with torch.inference_mode(), observe(streamed.model, adding.record, adding.inspect) as set_batch:
            for index in streamed.layers(first):
                progress.start_layer(index)
                after = point.start_layer(index, is_last=index + 1 == streamed.num_layers)
                for number, (domain, batch) in enumerate(work):
                    adding.domain = domain
                    set_batch(on_device := batch.to(streamed.device))
                    before = point.before.take(number).to(streamed.device) if point.before else None
                    output = streamed.replay.run(index, on_device, before)
                    if after is not None:
                        after.append(output)
                    progress.add_tokens(batch.num_tokens)
                adding.finish()
                point.commit(index, sums)
                progress.end_layer(streamed.reader.num_bytes)
        point.finish(sums)
        adding.finish()  # what needs all layers at once
    except BaseException as error:
        point.abandon(error)
        raise
