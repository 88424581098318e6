"""Parts of a streamed collection in processes of their own: to be killed, to meet others, to have little memory."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from safetensors.torch import save_file
from tests.collection.conftest import make_domains, read_files, run_streamed

from moe_compress.collection.hidden import HiddenStates
from moe_compress.collection.progress import Progress
from moe_compress.collection.resume import ResumePoint, remove_finished
from moe_compress.types import MoELayout


class Slow(Progress):
    """Makes a tiny model take long enough to be killed in the middle."""

    def add_tokens(self, num_tokens):
        time.sleep(0.02)


def collect(checkpoint, folder, result, keep):
    """Collect, going on from what an earlier process committed, and write the sums to a file."""
    layout = MoELayout(tuple(range(8)), (8,) * 8, 2)
    point = ResumePoint(folder, "f" * 64, keep)
    sums, _ = run_streamed(read_files(checkpoint), layout, make_domains(), point=point, progress=Slow(1, 8))
    save_file({f"{name}/{k}": v for name, each in sums.items() for k, v in each.state().items()}, result)


def tidy(folder, together):
    """Remove what is finished, at the moment when all others do."""
    together.wait()
    remove_finished(folder)


def read_in_little_memory(path, places, most_bytes):
    """Read the first output of a file, with no more memory than this besides what the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + most_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert HiddenStates.reopen(path, places).take(0).value.eq(7).all()
