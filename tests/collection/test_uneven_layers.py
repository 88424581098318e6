"""A checkpoint whose layers keep different numbers of experts is collected from like any other."""

from __future__ import annotations

import pytest
import torch
from tests.collection.conftest import CPU, assert_same_bits, make_domains, read_files, run_resident, run_streamed

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.collection.resident import load_resident
from moe_compress.families.derive import derive_layout, derive_tensor_map
from moe_compress.types import CompressionPlan, pruning_groups

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers")


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "qwen3_moe"])
def test_streamed_is_resident_to_the_bit(checkpoint, family, tmp_path):
    index = read_index(checkpoint(family))
    tensor_map = derive_tensor_map(index.config, index.shapes)
    counts = tuple(tensor_map.layout.num_experts[0] - 2 * row for row in range(len(tensor_map.layout.layers)))
    plan = CompressionPlan(tensor_map.layout, tuple(pruning_groups(range(count)) for count in counts), "test")
    write_checkpoint(plan_rewrite(index, tensor_map, plan, layout="per_layer"), tmp_path / "uneven")
    files, domains = read_files(tmp_path / "uneven"), make_domains()
    layout = derive_layout(files.config, files.plain.shapes)
    assert layout.num_experts == counts and len(set(counts)) > 1
    model = load_resident(files.folder, CPU, torch.float32)
    model.set_experts_implementation("grouped_mm")
    expected = run_resident(model, layout, domains)
    found, _ = run_streamed(files, layout, domains)
    assert_same_bits(found, expected)
    assert [len(expected["one"].state([row])[f"{row}.embedding"]) for row in range(len(counts))] == list(counts)
