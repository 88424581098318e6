"""One rank of several, in a process of its own, with the variables that torchrun sets."""

from __future__ import annotations

import os

import torch
from safetensors.torch import save_file
from tests.collection.conftest import layout_of, load_plain, make_sums, read_files

from moe_compress.collection.distributed import add_ranks, join_ranks, take_share
from moe_compress.collection.progress import Progress
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.streamed import StreamedModel, collect_streamed


def collect_rank(checkpoint, domains, folder, rank, num_ranks, port):
    """Collect this rank's share, add up all ranks', and write what this rank then has."""
    place = {"RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    cpu = torch.device("cpu")
    sums = make_sums(layout_of(load_plain("qwen3_moe", checkpoint, torch.float32)), domains)
    with join_ranks(cpu) as (own, count):
        assert (own, count) == (rank, num_ranks)
        share = take_share(domains, own, count)
        streamed = StreamedModel(read_files(checkpoint), torch.float32, cpu)
        collect_streamed(streamed, share, sums, ResumePoint(None, "", keep=True), Progress(1, 3))
        if count > 1:
            add_ranks(sums, cpu)
    state = {f"{name}/{key}": value for name, own in sums.items() for key, value in own.state().items()}
    save_file(state, folder / f"{rank}.safetensors")
