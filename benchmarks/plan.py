"""How long planning a DeepSeek-V3 takes, how much memory, and whether the planned sizes are right to the byte.

The checkpoint has the names, shapes and files of the original, 91 thousand tensors in 163 files, with holes in
place of 688 GB of numbers. The plan halves the experts. Times are of a fresh process, imports left out.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.synthetic import deepseek_config, deepseek_tensors, lay_out, plan_half

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.routers import check_routers
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.verify import verify_checkpoint

MAX_SECONDS = 15
MAX_MEGABYTES = 1000
NUM_SHARDS = 163


def main() -> int:
    """Run the benchmark, print its table, and return 1 if a limit is broken or a size wrong."""
    config = deepseek_config()
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
        folder = Path(name) / "source"
        lay_out(folder, config, list(deepseek_tensors(config)), NUM_SHARDS, is_sparse=True)
        seconds, rewrite = _plan(folder)
    peak = _peak_megabytes()
    problem = find_wrong_size(rewrite, config | {"n_routed_experts": config["n_routed_experts"] // 2})
    total = sum(seconds.values())
    for step, spent in seconds.items():
        print(f"{spent:6.2f} s  {step}")
    print(f"{total:6.2f} s  in all, limit {MAX_SECONDS}")
    print(f"{peak:6.0f} MB at most in the whole process, limit {MAX_MEGABYTES}")
    print(f"{rewrite.num_bytes} bytes in {len(rewrite.shards)} files: {problem or 'every size is right'}")
    return int(total > MAX_SECONDS or peak > MAX_MEGABYTES or problem is not None)


def _plan(folder: Path) -> tuple[dict[str, float], CheckpointRewrite]:
    """Return the seconds of each step, and the planned rewrite."""
    moments = [("", time.perf_counter())]

    def mark(step: str) -> None:
        moments.append((step, time.perf_counter()))

    index = read_index(folder)
    mark("read the headers")
    tensor_map = derive_tensor_map(index.config, index.shapes)
    mark("derive what each tensor is")
    check_routers(index, tensor_map)
    mark("read the routers")
    rewrite = plan_rewrite(index, tensor_map, plan_half(tensor_map.layout))
    mark("plan the bytes")
    verify_checkpoint(rewrite.config, rewrite.shapes)
    mark("ask transformers about the outcome")
    seconds = {step: end - start for (_, start), (step, end) in pairwise(moments)}
    return seconds, rewrite


def find_wrong_size(rewrite: CheckpointRewrite, config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the planned names and sizes, told from the shapes of a smaller model alone."""
    expected = {spec.name: spec for spec in deepseek_tensors(config)}
    if rewrite.tensors.keys() != expected.keys():
        return f"{len(rewrite.tensors.keys() ^ expected.keys())} names differ"
    for name, spec in expected.items():
        found = rewrite.tensors[name]
        if (found.dtype, found.shape, found.num_bytes) != (spec.dtype, spec.shape, spec.num_bytes):
            return f"{name} is planned as {found.dtype} {found.shape} of {found.num_bytes} bytes"
    headers = sum(8 + int.from_bytes(shard.header[:8], "little") for shard in rewrite.shards)
    total = headers + sum(spec.num_bytes for spec in expected.values())
    return None if rewrite.num_bytes == total else f"{total} bytes were expected"


def _peak_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
