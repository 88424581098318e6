"""Load and run one model in a process of its own, where its time and memory are nobody else's.

`python -m moe_compress.evaluation.footprint` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import moe_compress
from moe_compress.errors import EvaluationError
from moe_compress.types import Throughput, as_json, throughput_from_json


def measure_throughput(
    folder: Path | str, batch_sizes: Sequence[int], device: str = "auto", dtype: str = "float32"
) -> Throughput:
    """Return how fast a checkpoint loads, reads and writes, and how much memory that takes.

    Args:
        folder: a checkpoint folder.
        batch_sizes: sequences read, and written, at once.
        device: see `load_stock`.
        dtype: see `load_stock`.

    Raises:
        EvaluationError: if the process fails, with its last line.
    """
    from moe_compress.evaluation.loading import release_memory

    release_memory()  # the process to come finds none of what this one keeps for models it no longer has
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place) / "throughput.json"
        request = {"folder": str(folder), "batch_sizes": list(batch_sizes), "device": device, "dtype": dtype}
        root = str(Path(moe_compress.__file__).parents[1])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(request), str(answer)],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        if done.returncode or not answer.is_file():
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise EvaluationError(
                f"timing {folder} in a process of its own failed ({reason}); lower evaluate.batch_sizes, or check "
                "that the model loads"
            )
        return throughput_from_json(json.loads(answer.read_text()))


def main(request: str, answer: str) -> None:
    """Measure what a request asks for, and write it as JSON."""
    asked = json.loads(request)
    # Libraries are loaded before the clock starts and before memory is looked at.
    import torch

    from moe_compress.evaluation.loading import load_stock
    from moe_compress.evaluation.throughput import time_model

    before = _resident_bytes("VmRSS")
    start = time.perf_counter()
    model = load_stock(asked["folder"], asked["device"], asked["dtype"]).model
    seconds = time.perf_counter() - start
    found = {
        "load_seconds": seconds,
        **as_json(time_model(model, asked["batch_sizes"])),
    }
    if model.device.type == "cuda":
        peak = sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
        found |= {"memory": "gpu", "peak_bytes": peak}
    else:
        found |= {"memory": "process", "peak_bytes": _resident_bytes("VmHWM") - before}
    Path(answer).write_text(json.dumps(found))


def _resident_bytes(kind: str) -> int:
    """Return the process' resident memory now (`VmRSS`) or at its highest (`VmHWM`), from the kernel."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        # Elsewhere only the peak is told, in bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
