"""Tiny checkpoints of many families, batches of uneven length, and both ways of collecting from them."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
import torch
from tests import tiny_families

from moe_compress.checkpoint.index import read_index
from moe_compress.collection.batches import Batch
from moe_compress.collection.expert_layers import find_layers
from moe_compress.collection.progress import Progress
from moe_compress.collection.resident import collect_resident, settle_weights
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.streamed import CheckpointFiles, StreamedModel, collect_streamed
from moe_compress.collection.sums import start_sums
from moe_compress.types import MoELayout

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return family -> the folder of its tiny model."""

    @cache
    def make(family) -> Path:
        folder = tmp_path_factory.mktemp(family)
        tiny_families.save(family, folder)
        return folder

    return make


def make_batch(seed, rows, length, first):
    """Return a batch whose rows after the first are three tokens shorter."""
    ids = torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1:, length - 3 :] = 0
    return Batch(ids * mask, mask, torch.arange(first, first + rows))


def make_domains():
    """Return two domains of five and two demonstrations, in batches of different length."""
    return {"one": (make_batch(1, 3, 9, 0), make_batch(2, 2, 12, 3)), "two": (make_batch(3, 2, 7, 0),)}


def make_sums(layout, domains):
    """Return empty sums; the first domain is asked for all there is."""
    every = ("coactivation", "embedding", "logit_gram", "max_gate_norm", "max_norm", "pooled_gram")
    requests = {"one": every, "two": ()}
    return {name: start_sums(layout, batches, requests[name], 16) for name, batches in domains.items()}


def read_files(folder):
    index = read_index(folder)
    return CheckpointFiles(folder, index.config, index.tensors)


def load_plain(family, folder, dtype, experts="grouped_mm"):
    auto = tiny_families.auto_class(family)
    return settle_weights(auto.from_pretrained(folder, dtype=dtype, experts_implementation=experts).eval())


def layout_of(model):
    """Return the layout of a loaded model; its routers pick what its config says."""
    layers = find_layers(model)
    config = model.config.get_text_config()
    names = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
    top_k = next(getattr(config, name) for name in names if getattr(config, name, None))
    return MoELayout(tuple(range(len(layers))), tuple(layer.experts.num_experts for layer in layers), top_k)


def run_resident(model, layout, domains, all_domains=None):
    sums = make_sums(layout, all_domains or domains)
    collect_resident(model, domains, sums, Progress(1, 1))
    return sums


def run_streamed(files, layout, domains, dtype=torch.float32, experts="grouped_mm", point=None, progress=None):
    streamed = StreamedModel(files, dtype, CPU)
    streamed.model.set_experts_implementation(experts)
    sums = make_sums(layout, domains)
    point = point or ResumePoint(None, "", keep=True)
    with closing(point):
        collect_streamed(streamed, domains, sums, point, progress or Progress(1, 1))
    return sums, streamed


def assert_same_bits(these, those):
    assert these.keys() == those.keys()
    for name, sums in these.items():
        expected = those[name].state()
        assert sums.state().keys() == expected.keys()
        for key, value in sums.state().items():
            assert torch.equal(value, expected[key]), (name, key)
