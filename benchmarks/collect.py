"""What collecting costs beside a plain pass, reading the file once, and running every expert on every token.

Prints one row a claim, with its limit, and exits with 1 if a limit is broken: `python -m benchmarks.collect`. With
`--device cuda` the layers are of realistic size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.peak import peak, reset_peak
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe_compress.checkpoint.index import read_index
from moe_compress.collection.batches import Batch
from moe_compress.collection.progress import Progress
from moe_compress.collection.resident import collect_resident, load_resident
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.streamed import CheckpointFiles, StreamedModel, collect_streamed
from moe_compress.collection.sums import start_sums
from moe_compress.families.derive import derive_tensor_map
from moe_compress.types import MoELayout

ROUNDS = 4, 32
"""At least and at most so many rounds are timed; between the two, until a minute is over."""
VOCABULARY = 2048
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """How large the timed models are."""

    hidden: int
    inner: int
    experts: int
    layers: int
    tokens: int


CPU_SIZE = Size(hidden=1024, inner=384, experts=32, layers=8, tokens=4096)  # 2048, 768 and 48 layers in Qwen3-30B
RESIDENT_LAYERS = 4
"""Of a model that is timed resident alone: watching costs the same in each layer, and rounds are shorter."""
GPU_SIZE = Size(hidden=2048, inner=768, experts=128, layers=6, tokens=16384)
QWEN3_30B_LAYER = Size(hidden=2048, inner=768, experts=32, layers=1, tokens=4096)  # 128 experts, top-8
DEEPSEEK_LITE_LAYER = Size(hidden=2048, inner=1408, experts=32, layers=2, tokens=4096)  # 64 experts, top-6


@dataclass(frozen=True)
class Claim:
    """One measured ratio and its limit."""

    what: str
    value: float
    limit: float
    is_at_least: bool = False
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.value >= self.limit if self.is_at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.is_at_least else "<="
        verdict = "ok  " if self.holds else "FAIL"
        return f"{verdict} {self.what:<62}{self.value:8.3f} {sign} {self.limit:<6g} {self.note}"


@dataclass
class Clock:
    """The clock that all timings use."""

    now: Callable[[], float] = time.perf_counter


CLOCK = Clock()


class Quiet(Progress):
    """No bar: its drawing would be timed."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self._bar.disable = True


def make_qwen3(size: Size, layers: int | None = None, experts: int | None = None, top_k: int = 4) -> Any:
    """Return a random Qwen3-MoE."""
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.inner,
            moe_intermediate_size=size.inner,
            num_hidden_layers=layers or size.layers,
            num_attention_heads=size.hidden // 64,
            num_key_value_heads=size.hidden // 128,
            head_dim=64,
            num_experts=experts or size.experts,
            num_experts_per_tok=top_k,
            norm_topk_prob=True,
        )
    )


def make_deepseek(size: Size, inner: int | None = None, top_k: int = 4) -> Any:
    """Return a random DeepSeek-V3."""
    inner = inner or size.inner * 3 // 4  # narrower than Qwen's: 2048 of 7168
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=2 * inner,
            moe_intermediate_size=inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden // 64,
            num_key_value_heads=size.hidden // 64,
            n_routed_experts=size.experts,
            num_experts_per_tok=top_k,
            n_shared_experts=1,
            n_group=4,
            topk_group=2,
            first_k_dense_replace=1,
            q_lora_rank=size.hidden // 2,
            kv_lora_rank=size.hidden // 4,
            qk_nope_head_dim=64,
            qk_rope_head_dim=32,
            v_head_dim=64,
        )
    )


def save(model: Any, dtype: torch.dtype, folder: Path) -> tuple[CheckpointFiles, MoELayout, float]:
    """Write a model; return its files, its layout and its millions of parameters."""
    model.to(dtype).save_pretrained(folder)
    index = read_index(folder)
    millions = sum(value.numel() for value in model.parameters()) / 1e6
    return (
        CheckpointFiles(folder, index.config, index.tensors),
        derive_tensor_map(index.config, index.shapes).layout,
        millions,
    )


def make_batches(num_tokens: int, rows: int = 4) -> tuple[Batch, ...]:
    """Return two batches that hold `num_tokens` together, without padding."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, num_tokens // rows // 2)
    return tuple(
        Batch(
            torch.randint(VOCABULARY, shape, generator=generator),
            torch.ones(shape, dtype=torch.long),
            torch.arange(first, first + rows),
        )
        for first in (0, rows)
    )


def time_in_turns(device: torch.device, *functions: Callable[[], object]) -> list[float]:
    """Return each function's shortest seconds of `ROUNDS` in which all take turns, after one to warm up.

    With `--clock=cpu` they are seconds of work by all threads, which other programs on the machine do not lengthen,
    and which reading a layer while another computes does not shorten.
    """
    clock, at_least, at_most = CLOCK.now, *ROUNDS
    best = [float("inf")] * len(functions)
    end = time.monotonic() + 60
    for turn in range(at_most + 1):
        if turn > at_least and time.monotonic() > end:
            break
        for place, function in enumerate(functions):
            wait(device)
            started = clock()
            function()
            wait(device)
            if turn:
                best[place] = min(best[place], clock() - started)
    return best


def wait(device: torch.device) -> None:
    """Return when the device has done all it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_once(files: CheckpointFiles) -> None:
    """Read every shard from its first byte to its last."""
    buffer = bytearray(16 << 20)
    for shard in sorted({info.file for info in files.tensors.values()}):
        with open(files.folder / shard, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def compare_with_forward(device: torch.device, size: Size, folder: Path) -> Iterator[Claim]:
    """Time resident collection against a plain pass, and streamed collection against resident and reading."""
    shallow = replace(size, layers=RESIDENT_LAYERS)
    for family, make in (("qwen3_moe", make_qwen3), ("deepseek_v3", make_deepseek)):
        for name, dtype in DTYPES.items():
            for shape, compare in ((shallow, time_resident), (size, time_streamed)):
                torch.manual_seed(0)
                files, layout, millions = save(make(shape), dtype, folder / f"{family}-{name}-{shape.layers}")
                yield from compare(f"{family} {millions:.0f}M {name}", files, layout, dtype, device, size)


@torch.inference_mode()
def run_plain(model: Any, batches: Sequence[Batch], device: torch.device) -> None:
    """Run the model without its head."""
    for batch in batches:
        ready = batch.to(device)
        model.base_model(ready.input_ids_BS, attention_mask=ready.mask_BS, use_cache=False)


def compare_real_layers(device: torch.device, folder: Path) -> Iterator[Claim]:
    """Time a plain forward pass and resident collection, in turns, where layers are as wide as real models' are."""
    sizes = QWEN3_30B_LAYER, DEEPSEEK_LITE_LAYER
    for name, dtype in DTYPES.items():
        models = make_qwen3(sizes[0], top_k=8), make_deepseek(sizes[1], inner=sizes[1].inner, top_k=6)
        for label, size, made in zip(("Qwen3-30B-A3B", "DeepSeek-V2-Lite"), sizes, models, strict=True):
            files, layout, _ = save(made, dtype, folder / f"{label}-{name}")
            yield from time_resident(f"layer of {label} {name}", files, layout, dtype, device, size)


def time_resident(
    label: str, files: CheckpointFiles, layout: MoELayout, dtype: torch.dtype, device: torch.device, size: Size
) -> list[Claim]:
    """Time a plain pass and resident collection, in turns."""
    model, domains = load_resident(files.folder, device, dtype), {"one": make_batches(size.tokens)}
    plain, inside = time_in_turns(
        device,
        lambda: run_plain(model, domains["one"], device),
        lambda: collect_resident(model, domains, {"one": start_sums(layout, domains["one"])}, Quiet()),
    )
    return [Claim(f"(a) resident / forward, {label}", inside / plain, 1.05, note=f"{inside:.3f} s / {plain:.3f} s")]


def time_streamed(
    label: str, files: CheckpointFiles, layout: MoELayout, dtype: torch.dtype, device: torch.device, size: Size
) -> list[Claim]:
    """Time resident and streamed collection and reading the file, in turns, and count the bytes that are read."""
    domains = {"one": make_batches(size.tokens)}
    model = load_resident(files.folder, device, dtype)
    streamed = StreamedModel(files, dtype, device)
    read = []

    def resident() -> None:
        collect_resident(model, domains, {"one": start_sums(layout, domains["one"])}, Quiet())

    def stream() -> None:
        before = streamed.reader.num_bytes
        with (
            tempfile.TemporaryDirectory(dir=files.folder.parent) as work,
            closing(ResumePoint(Path(work), "benchmark" * 8, keep=True)) as point,
        ):
            collect_streamed(streamed, domains, {"one": start_sums(layout, domains["one"])}, point, Quiet())
        read.append(streamed.reader.num_bytes - before)

    inside, layered, reading = time_in_turns(device, resident, stream, lambda: read_once(files))
    bytes_on_disk = sum(path.stat().st_size for path in files.folder.glob("*.safetensors"))
    return [
        Claim(
            f"(b) streamed / (resident + read), {label}",
            layered / (inside + reading),
            1.15,
            note=f"{layered:.3f} s / ({inside:.3f} s + {reading:.3f} s)",
        ),
        Claim(f"(c) bytes read / size, {label}", max(read) / bytes_on_disk, 1.02),
    ]


def measure_peak(files: CheckpointFiles, layout: MoELayout, device_name: str, result: Any) -> None:
    """Put into `result` the bytes that a streamed collection took at most beside what there was, and a layer's."""
    device = torch.device(device_name)
    domains = {"one": make_batches(512)}
    sums = {"one": start_sums(layout, domains["one"])}
    streamed = StreamedModel(files, torch.float32, device)
    before = 0
    for _ in range(2):  # the first time also loads libraries
        with tempfile.TemporaryDirectory() as work:
            before = reset_peak(device)
            with closing(ResumePoint(Path(work), "benchmark" * 8, keep=False)) as point:
                collect_streamed(streamed, domains, sums, point, Quiet())
    result.put((peak(device) - before, max(streamed.layer_bytes())))


def compare_depths(device: torch.device, folder: Path) -> list[Claim]:
    """Measure the peak memory of streaming 8, 16 and 32 layers of one size, each in a process of its own."""
    size = Size(hidden=512, inner=512, experts=32, layers=8, tokens=512)
    context, peaks, layer = multiprocessing.get_context("spawn"), {}, 0
    for layers in (8, 16, 32):
        torch.manual_seed(0)
        files, layout, _ = save(make_qwen3(size, layers), torch.float32, folder / f"deep-{layers}")
        result = context.Queue()
        process = context.Process(target=measure_peak, args=(files, layout, str(device), result))
        process.start()
        peaks[layers], layer = result.get()
        process.join()
        for path in files.folder.glob("*.safetensors"):
            path.unlink()
    spread = max(peaks.values()) / min(peaks.values()) - 1
    note = ", ".join(f"{layers} layers {value / 1e6:.0f} MB" for layers, value in peaks.items())
    return [
        Claim("(d) spread of peak memory over 8, 16 and 32 layers", spread, 0.05, note=note),
        Claim(
            "(d) peak memory / two layers",
            max(peaks.values()) / (2 * layer),
            1.3,
            note=f"layer {layer / 1e6:.0f} MB",
        ),
    ]


@torch.inference_mode()
def run_all_experts(model: Any, batches: Sequence[Batch], device: torch.device) -> None:
    """As the known observers do: hook each block, and run every expert on every token of its input."""

    def observe(block: Any, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        hidden_TD = inputs[0].reshape(-1, inputs[0].shape[-1])
        _, weights_TK, ids_TK = block.gate(hidden_TD)
        for expert in range(block.experts.num_experts):
            gate_TI, up_TI = (hidden_TD @ block.experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            output_TD = (block.experts.act_fn(gate_TI) * up_TI) @ block.experts.down_proj[expert].T
            chosen_T = (ids_TK == expert).any(dim=-1)
            torch.linalg.vector_norm(output_TD, dim=-1)[chosen_T].sum()
            weights_TK[ids_TK == expert].sum()

    handles = [layer.mlp.register_forward_hook(observe) for layer in model.base_model.layers]
    run_plain(model, batches, device)
    for handle in handles:
        handle.remove()


def compare_with_all_experts(device: torch.device, folder: Path) -> list[Claim]:
    """Time the peers' way beside ours at 128 experts and top-8."""
    size = Size(hidden=512, inner=384, experts=128, layers=2, tokens=2048)
    torch.manual_seed(0)
    files, layout, _ = save(make_qwen3(size, top_k=8), torch.float32, folder / "wide")
    model, domains = load_resident(files.folder, device, torch.float32), {"one": make_batches(size.tokens)}
    ours, theirs = time_in_turns(
        device,
        lambda: collect_resident(model, domains, {"one": start_sums(layout, domains["one"])}, Quiet()),
        lambda: run_all_experts(model, domains["one"], device),
    )
    return [Claim("(e) all experts on all tokens / ours, 128 experts top-8", theirs / ours, 6, is_at_least=True)]


def main() -> int:
    """Measure, print, and return 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    CLOCK.now = time.process_time if arguments.clock == "cpu" else time.perf_counter
    os.environ.setdefault("TQDM_DISABLE", "1")
    size = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    print(
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        for compare in (
            lambda: compare_with_forward(device, size, Path(folder)),
            lambda: compare_real_layers(device, Path(folder)),
            lambda: compare_depths(device, Path(folder)),
            lambda: compare_with_all_experts(device, Path(folder)),
        ):
            for claim in compare():
                print(claim, flush=True)
                broken += not claim.holds
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
