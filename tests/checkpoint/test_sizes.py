"""Sizes from names alone: those of every plan are what a writer writes, and never more than was foretold."""

from __future__ import annotations

from math import prod

import pytest
from tests.checkpoint.conftest import make_map, make_plan, save

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.sizes import weigh


def test_sizes_by_hand(source):
    # Per expert of a layer: up 2 x 3 and fused 2 x 5 and a router row of 3 in float32, a bias in float16.
    size = weigh(read_index(source), make_map(), "parameters")
    assert size.experts == (6 + 10 + 3 + 1,) * 2
    assert size.rest == 12 + 2 * 3  # the embedding and both norms
    in_bytes = weigh(read_index(source), make_map(), "bytes")
    assert in_bytes.experts == (4 * 19 + 2,) * 2


@pytest.mark.parametrize("kept", [(0,), (3, 1), (0, 1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("max_shard_bytes", [100, 10_000])
def test_what_is_foretold_is_what_is_planned(source, kept, max_shard_bytes):
    index, options = read_index(source), {"max_shard_bytes": max_shard_bytes}
    rewrite = plan_rewrite(index, make_map(), make_plan(*sorted(kept)), **options)
    counted = weigh(index, make_map(), "parameters", **options)
    assert counted.rest + len(kept) * sum(counted.experts) == sum(map(prod, rewrite.shapes.values()))
    weighed = weigh(index, make_map(), "bytes", **options)
    spare = weighed.rest + len(kept) * sum(weighed.experts) - rewrite.num_bytes
    assert 0 <= spare <= 2 * 4 * 4 * 150  # headers of what is gone


def test_experts_that_differ_count_as_the_largest(tmp_path):
    folder = save(tmp_path / "one", shards=1)
    index = read_index(folder)
    name = "layers.1.experts.2.up.weight"
    tensors = dict(index.tensors)
    tensors[name] = type(tensors[name])(name, "F64", (2, 3), "model.safetensors", 0, 48)
    mixed = type(index)(index.folder, index.config, tensors, index.stamps)
    size = weigh(mixed, make_map(), "bytes")
    assert size.experts == (4 * 19 + 2 + 24, 4 * 19 + 2)
