"""How long a rewrite takes against `cp` of the bytes it keeps, and how much memory.

Half the experts of a synthetic checkpoint in 8 files are dropped. Each round times `cp -r` of the kept bytes and
the rewrite of them, one after the other, from the page cache: once without flushing to disk, which compares the
copying alone, and once with, where the disk decides. The rewrite always includes its proof of every byte.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.synthetic import lay_out, plan_half, qwen3_config, qwen3_tensors

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.routers import check_routers
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.families.derive import derive_tensor_map

MAX_RATIO = 1.25
MAX_MEGABYTES = 400
NUM_SHARDS = 8
LAYER_GB = 0.605  # of 64 experts


def main() -> int:
    """Run the benchmark, print its table, and return 1 if a limit is broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where to work, on the disk to measure; temporary if not given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gigabytes", type=float, default=4.2, help="the size that is timed")
    parser.add_argument("--large", type=float, default=12.1, help="a second size to measure memory at")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        return _measure_memory(chosen.measure)
    with tempfile.TemporaryDirectory(prefix="bench-rewrite-", dir=chosen.folder) as name:
        folder = Path(name)
        _lay_out(folder / "timed", chosen.gigabytes)
        ratio = _compare_times(folder, chosen.rounds)
        peaks = [_run_measurement(folder / "timed")]
        for used in ("timed", "kept"):
            shutil.rmtree(folder / used)
        _lay_out(folder / "large", chosen.large)
        peaks.append(_run_measurement(folder / "large"))
    print(f"rewrite / cp of the kept bytes, without flushing: {ratio:.2f}, limit {MAX_RATIO}")
    print(
        f"peak memory over the interpreter with its imports: {peaks[0]} MB at {chosen.gigabytes} GB and "
        f"{peaks[1]} MB at {chosen.large} GB, limit {MAX_MEGABYTES} MB"
    )
    return int(ratio > MAX_RATIO or max(peaks) > MAX_MEGABYTES)


def _lay_out(folder: Path, gigabytes: float) -> None:
    config = qwen3_config(num_layers=round(gigabytes / LAYER_GB))
    lay_out(folder, config, list(qwen3_tensors(config)), NUM_SHARDS, is_sparse=False)
    os.sync()


def _compare_times(folder: Path, rounds: int) -> float:
    """Print the times of each round and return the ratio of the medians without flushing."""
    kept = folder / "kept"
    rewrite = _plan(folder / "timed")
    _write(rewrite, kept)
    num_bytes = sum(file.stat().st_size for file in kept.iterdir())
    print(f"{num_bytes / 1e9:.2f} GB kept in {len(rewrite.shards)} files; seconds, and gigabytes a second")
    ratios: list[float] = []
    for flushes, count in ((False, rounds), (True, max(rounds // 2, 1))):
        pairs = [_time_pair(rewrite, kept, folder, flushes) for _ in range(count)]
        for theirs, ours in pairs:
            print(
                f"  {'with' if flushes else 'without'} flushing: cp {theirs:.2f} ({num_bytes / theirs / 1e9:.2f}), "
                f"rewrite {ours:.2f} ({num_bytes / ours / 1e9:.2f}), ratio {ours / theirs:.2f}"
            )
        theirs, ours = (median(times) for times in zip(*pairs, strict=True))
        best = min(ours for _, ours in pairs) / min(theirs for theirs, _ in pairs)
        print(f"  ratio of medians {ours / theirs:.2f}, of the best {best:.2f}")
        ratios.append(ours / theirs)
    return ratios[0]


def _time_pair(rewrite: CheckpointRewrite, kept: Path, folder: Path, flushes: bool) -> tuple[float, float]:
    """Return the seconds of `cp` and of the rewrite."""

    def copy(destination: Path) -> None:
        subprocess.run(["cp", "-r", kept, destination], check=True)
        if flushes:
            subprocess.run(["sync", *destination.iterdir()], check=True)

    def write(destination: Path) -> None:
        _write(rewrite, destination, flushes=flushes)

    return _time(copy, folder / "copied"), _time(write, folder / "written")


def _time(action: Callable[[Path], None], made: Path) -> float:
    """Return the seconds of an action and remove the folder it made."""
    os.sync()
    start = time.perf_counter()
    action(made)
    seconds = time.perf_counter() - start
    shutil.rmtree(made)
    return seconds


def _plan(source: Path) -> CheckpointRewrite:
    index = read_index(source)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    check_routers(index, tensor_map)
    shard_bytes = max(file.stat().st_size for file in source.glob("*.safetensors"))
    return plan_rewrite(index, tensor_map, plan_half(tensor_map.layout), max_shard_bytes=shard_bytes)


def _write(rewrite: CheckpointRewrite, destination: Path, *, flushes: bool = True) -> None:
    real = os.fsync
    try:
        if not flushes:  # `cp` does not flush either
            os.fsync = lambda fd: None
        write_checkpoint(rewrite, destination)
    finally:
        os.fsync = real


def _run_measurement(source: Path) -> int:
    """Return the megabytes a fresh process needs to plan and write, without those of its imports."""
    command = [sys.executable, "-m", "benchmarks.rewrite", "--measure", str(source)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measure_memory(source: Path) -> int:
    """Print what `_run_measurement` returns."""
    tiny = qwen3_config(num_layers=1, num_experts=8)
    derive_tensor_map(tiny, {spec.name: spec.shape for spec in qwen3_tensors(tiny)})  # imports the model's code
    before = _memory_kilobytes("VmRSS")
    written = source.with_name("measured")
    _write(_plan(source), written)
    peak = _memory_kilobytes("VmHWM")  # `getrusage` would count the parent's
    shutil.rmtree(written)
    print(round((peak - before) * 1024 / 1e6))
    return 0


def _memory_kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    sys.exit(main())
