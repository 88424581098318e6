"""What a collection will take, said before it starts: tokens, bytes, memory, disk and time."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from moe_compress.collection.batches import Batch
from moe_compress.collection.distributed import count_local_ranks
from moe_compress.collection.requests import CollectedShape, cost_of
from moe_compress.collection.streamed import CheckpointFiles, StreamedModel
from moe_compress.errors import ResourceError, UnsupportedModelError
from moe_compress.types import MoELayout

_COMFORTABLE = 0.8
"""Share of the free memory a whole model may take before it is streamed instead."""
_SAMPLE_BYTES = 64 << 20
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = {  # of a container: limit, use, and what the kernel's names of the use begin with
    "": ("memory.max", "memory.current", "memory.stat"),
    "total_": ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
}
"""In version 2 of control groups, and in version 1, whose limit is a huge number where there is none."""


@dataclass(frozen=True)
class Estimate:
    """What one way of collecting needs; memory and disk in bytes.

    Attributes:
        mode: `resident` or `streamed`.
        num_tokens: tokens that count.
        read_bytes: read from the checkpoint.
        device_bytes: peak memory of the device; on a CPU, of the host.
        host_bytes: peak host memory beside that; with it the largest weight file if a GPU is to hold all.
        disk_bytes: outputs of two layers at most, and what was asked for of each finished layer.
        seconds: a rough guess from a short measurement of this machine.
        between_bytes: outputs of two layers, wherever they lie.
        weight_bytes: of the device's memory, what weights take: two layers' or all.
        flops: floating-point operations, which with `read_bytes` give the time on another machine.
    """

    mode: str
    num_tokens: int
    read_bytes: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    seconds: float
    between_bytes: int = 0
    weight_bytes: int = 0
    flops: int = 0

    def __str__(self) -> str:
        rows = {
            "tokens": f"{self.num_tokens:,}",
            "read from the checkpoint": _in_gb(self.read_bytes),
            "peak memory of the device": _in_gb(self.device_bytes),
            "peak host memory beside it": _in_gb(self.host_bytes),
            "disk while it runs": _in_gb(self.disk_bytes),
            "time, very roughly": f"{self.seconds:,.0f} s",
        }
        return "\n".join([f"{self.mode} collection, estimated:", *(f"  {k:<32}{v:>14}" for k, v in rows.items())])


def estimate(
    mode: str,
    streamed: StreamedModel,
    domains: Mapping[str, Sequence[Batch]],
    layout: MoELayout,
    folder: Path | None,
    requests: Mapping[str, Collection[str]] = MappingProxyType({}),
    embedding_tokens: int = 0,
) -> Estimate:
    """Return what collecting takes.

    Args:
        mode: `resident` or `streamed`.
        streamed: the model without weights.
        domains: name -> batches.
        layout: the model's layout.
        folder: where outputs between layers are committed; None keeps them in memory.
        requests: domain -> statistics besides those every collection has.
        embedding_tokens: tokens that all experts run on, where `embedding` is requested.
    """
    batches = [batch for own in domains.values() for batch in own]
    sizes = streamed.layer_bytes()
    outside = streamed.outside_bytes()
    padded = sum(batch.input_ids_BS.numel() for batch in batches)
    between = 2 * sum(_bytes_between_layers(streamed, batch) for batch in batches) if mode == "streamed" else 0
    largest = max((_activation_bytes(streamed, layout, batch) for batch in batches), default=0)
    is_streamed = mode == "streamed"
    weights = outside + (2 * max(sizes) if is_streamed else sum(sizes))
    read = streamed.read_bytes()
    parameters = _active_parameters(streamed, layout)
    resident_layers = 1 if is_streamed else len(layout.layers)
    asked = [
        cost_of(request, _shape_of(streamed, layout, domains[name], embedding_tokens, resident_layers))
        for name, own in requests.items()
        for request in own
    ]
    attended = sum(_attention_flops(streamed, batch) for batch in batches)
    flops = 2 * parameters * padded + attended + sum(cost.flops for cost in asked)
    seconds = flops / _measure_flops(streamed.device, streamed.dtype)
    reading = read / _measure_reading(streamed.shards())
    beside = (between if folder is None else 0) if is_streamed else _bytes_of_loading(streamed)
    return Estimate(
        mode,
        sum(batch.num_tokens for batch in batches),
        read,
        weights + largest + sum(c.device_bytes for c in asked),
        sum(c.file_bytes for c in asked) + beside,
        between + sum(c.file_bytes for c in asked) if is_streamed and folder else 0,
        max(seconds, reading) if is_streamed else seconds + reading,
        between,
        weights,
        flops,
    )


def choose_mode(asked: str, resident: Estimate, device: torch.device, files: CheckpointFiles) -> tuple[str, str]:
    """Return the mode to collect in, and why.

    Raises:
        UnsupportedModelError: if streaming is asked for and the weights' format is not decoded here.
    """
    free = free_device_bytes(device)
    if asked == "streamed" and files.undecoded:
        raise UnsupportedModelError(
            f"'{files.undecoded[0]}' and {len(files.undecoded) - 1} other weights are stored in a format that is "
            "not decoded here; set collect.mode to resident, or give the checkpoint in BF16, FP8 or MXFP4"
        )
    if asked != "auto":
        return asked, "collect.mode says so"
    if files.undecoded:
        return "resident", "the weights' format is one that only transformers decodes"
    if files.plain.encodings:
        return "streamed", "the checkpoint is quantised, and streaming de-quantises it layer by layer"
    needs = f"the whole model needs about {_in_gb(resident.device_bytes)} of {_in_gb(free)} free on {device.type}"
    if resident.host_bytes > free_host_bytes():
        return "streamed", f"the whole model needs about {_in_gb(resident.host_bytes)} of the host's memory"
    return ("resident" if resident.device_bytes <= _COMFORTABLE * free else "streamed"), needs


def refuse_what_cannot_fit(
    needed: Estimate, device: torch.device, folder: Path | None, held_bytes: int = 0
) -> None:
    """Check the estimate against what this machine has free for each rank that runs on it.

    Args:
        needed: what one rank takes.
        device: where it computes.
        folder: where a streamed collection commits each layer.
        held_bytes: what the same collection has there already, from when it was interrupted.

    Raises:
        ResourceError: naming what does not suffice.
    """
    host = needed.host_bytes + (needed.device_bytes if device.type == "cpu" else 0)
    checks = [
        (
            "device memory",
            needed.device_bytes,
            free_device_bytes(device),
            "collect.batch_size or collect.max_tokens",
        ),
        ("host memory", host, free_host_bytes(), "collect.batch_size or collect.max_tokens"),
    ]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free // count_local_ranks()
        checks.append(("disk", needed.disk_bytes - held_bytes, free, "data.sample"))
    each = " for each rank" if count_local_ranks() > 1 else ""
    for what, need, free, parameter in checks:
        if need > free:
            step = f"free some, or lower {parameter}"
            if needed.mode == "resident":
                step += " or set collect.mode to streamed"
            elif what != "disk" and needed.weight_bytes > free:
                step = f"two layers' weights alone are {_in_gb(needed.weight_bytes)}, so take a device with more"
            raise ResourceError(
                f"{needed.mode} collection needs about {_in_gb(need)} of {what}, but {_in_gb(free)} are free"
                f"{f' in {folder}' if what == 'disk' else ''}{each}; {step}"
            )


def free_device_bytes(device: torch.device) -> int:
    """Return the memory that a device has free; a CPU's is the host's."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_host_bytes()


def free_host_bytes(groups: Path = _CGROUPS) -> int:
    """Return the host memory this process may still take, within its container's limit and beside other ranks.

    Args:
        groups: where the kernel tells of control groups.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_left_by_limits(groups)]) // count_local_ranks()


def _left_by_limits(groups: Path) -> Iterator[int]:
    """Yield what a container's limit leaves; files' pages count as used there, but go when memory is asked for."""
    for prefix, names in _LIMITS.items():
        with suppress(OSError):
            (limit,), (used,), parts = ((groups / name).read_text().split() for name in names)
            sizes = dict(zip(parts[::2], map(int, parts[1::2]), strict=True))
            if limit != "max":
                yield int(limit) - int(used) + sum(sizes[f"{prefix}{kind}_file"] for kind in ("active", "inactive"))


def _bytes_of_loading(streamed: StreamedModel) -> int:
    """Return what loading the whole model takes of the host, through which it goes to a GPU file by file."""
    return 0 if streamed.device.type == "cpu" else max(path.stat().st_size for path in streamed.shards())


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


def _bytes_between_layers(streamed: StreamedModel, batch: Batch) -> int:
    """Return the bytes that one layer hands on to the next for a batch, at most."""
    config = streamed.model.config.get_text_config()
    numbers = _hidden_size(streamed.model) * getattr(config, "hc_mult", 1)  # DeepSeek-V4 has several streams
    sources = getattr(config, "kv_source_layers", None) or []
    if getattr(config, "num_kv_shared_layers", 0) or len(set(sources)) < len(sources):
        numbers += 2 * _widest_pair(streamed.model)  # of two kinds: sliding and full, or with and without positions
    rows, length = batch.input_ids_BS.shape
    # Positions that one layer chose and the next reuses.
    chosen = min(config.index_topk, length) if getattr(config, "indexer_types", None) else 0
    return int(rows * length * (numbers * streamed.dtype.itemsize + 8 * chosen))


def _widest_pair(model: Any) -> int:
    """Return the numbers in the widest layer's key and value of one token, compressed where the family does so."""
    times = {".k_proj.weight": 2, ".kv_a_proj_with_mqa.weight": 1}
    found = (
        len(value) * times[end] for name, value in model.named_parameters() for end in times if name.endswith(end)
    )
    return max(found, default=0)


def _activation_bytes(streamed: StreamedModel, layout: MoELayout, batch: Batch) -> int:
    """Return roughly what one layer's forward pass of a batch needs beside weights: pairs, norms and the mask."""
    rows, length = batch.input_ids_BS.shape
    config = streamed.model.config.get_text_config()
    hidden = _hidden_size(streamed.model)
    sizes = (getattr(config, name, None) for name in ("moe_intermediate_size", "intermediate_size"))
    inner = next((size for size in sizes if isinstance(size, int)), hidden)
    per_token = layout.top_k * (3 * hidden + 3 * inner) * streamed.dtype.itemsize + 8 * hidden * 8
    return int(rows * length * per_token + rows * length * length * 4)


def _shape_of(
    streamed: StreamedModel,
    layout: MoELayout,
    batches: Sequence[Batch],
    embedding_tokens: int,
    resident_layers: int,
) -> CollectedShape:
    """Return what the costs of a domain's requests depend on."""
    experts = sum(value.numel() for name, value in streamed.model.named_parameters() if ".experts." in name)
    num_tokens = sum(batch.num_tokens for batch in batches)
    one = experts // sum(layout.num_experts)
    demonstrations = sum(len(batch.demonstrations_B) for batch in batches)
    hidden = _hidden_size(streamed.model)
    return CollectedShape(layout, hidden, one, num_tokens, embedding_tokens, resident_layers, demonstrations)


def _active_parameters(streamed: StreamedModel, layout: MoELayout) -> int:
    """Return the parameters of the decoder layers that one token meets."""
    share = layout.top_k / max(layout.num_experts)
    return sum(
        int(tensor.numel() * (share if ".experts." in name else 1))
        for name, tensor in streamed.model.named_parameters()
        if name.startswith(f"{streamed.replay.path}.")
    )


def _attention_flops(streamed: StreamedModel, batch: Batch) -> int:
    """Return the operations of all layers' products of queries, keys and values, as if each saw all positions."""
    config = streamed.model.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    head = getattr(config, "head_dim", None) or _hidden_size(streamed.model) // max(heads, 1)
    key = (getattr(config, "qk_nope_head_dim", 0) or 0) + (getattr(config, "qk_rope_head_dim", 0) or 0) or head
    value = getattr(config, "v_head_dim", None) or head
    rows, length = batch.input_ids_BS.shape
    return 2 * rows * length**2 * heads * (key + value) * streamed.num_layers


@cache
def _measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations per second of a layer's work in small, from a tenth of a second.

    A product, and what stands between two of them over tokens that fill no cache: on a CPU that multiplies bfloat16
    in units of its own, products alone would foretell a fraction of the time. Measured once a process.
    """
    width = 4096 if device.type == "cuda" else 512
    tokens_TD = torch.ones(4096, width, device=device, dtype=dtype)
    weight_DD = torch.ones(width, width, device=device, dtype=dtype)

    def run() -> None:
        product_TD = tokens_TD @ weight_DD
        float((torch.nn.functional.silu(product_TD) * tokens_TD)[0, 0])  # reading a value waits for it

    run()  # the first call is slow
    started, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < 0.1:
        run()
        count += 1
    return 2.0 * len(tokens_TD) * width**2 * max(count, 1) / seconds


def _measure_reading(shards: Sequence[Path]) -> float:
    """Return bytes per second of reading a hundredth of the first shard; fast if it is in memory already."""
    size = min(_SAMPLE_BYTES, shards[0].stat().st_size // 100)
    started = time.perf_counter()
    with open(shards[0], "rb", buffering=0) as file:
        file.read(max(size, 1))
    return max(size, 1) / (time.perf_counter() - started)


def _in_gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
