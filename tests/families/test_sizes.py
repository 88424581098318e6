"""Budgets of bytes through a writer, layout by layout: what is written fits, and one expert more would not."""

from __future__ import annotations

import pytest
import torch
from tests.families.conftest import PASSING
from tests.families.quantised_checkpoints import (
    FP8,
    WIDE,
    encode_fp8,
    make_model,
    quantise_mxfp4,
    save,
    unfuse,
    write_config,
)

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.sizes import weigh
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.evaluation.throughput import measure_size
from moe_compress.families.derive import derive_tensor_map
from moe_compress.methods import budget_within, experts_to_keep
from moe_compress.types import Budget, CompressionPlan, pruning_groups


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    """A DeepSeek-V3 with codes and scales per expert, and one of them in BF16."""
    model = make_model("deepseek_v3", **WIDE)
    keep = [f"model.layers.1.mlp.experts.5.{matrix}_proj" for matrix in ("gate", "up", "down")]
    config = write_config(model, quantization_config=FP8 | {"modules_to_not_convert": [*keep, "lm_head"]})
    return save(
        tmp_path_factory.mktemp("fp8") / "model", config, encode_fp8(unfuse(model.state_dict()), [*keep, "lm_head"])
    )


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory):
    model = make_model("gpt_oss", hidden_size=64, intermediate_size=96, num_hidden_layers=3)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = quantise_mxfp4(tensor)
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    return save(
        tmp_path_factory.mktemp("mxfp4") / "model",
        write_config(model, quantization_config={"quant_method": "mxfp4"}),
        tensors,
    )


def write_within(folder, destination, kept, spare, **options):
    """Write what fits in the size of `kept` experts a layer less `spare` bytes; return that size and its own."""
    index = read_index(folder)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    layout = tensor_map.layout
    size = weigh(index, tensor_map, "bytes", **options)
    max_bytes = size.rest + kept * sum(size.experts) - spare
    counts = experts_to_keep(budget_within(max_bytes, size, layout, Budget(fraction_dropped=0.0)), layout)
    plan = CompressionPlan(layout, tuple(pruning_groups(range(count)) for count in counts), "test")
    rewrite = plan_rewrite(index, tensor_map, plan, **options)
    write_checkpoint(rewrite, destination)
    written = measure_size(destination)
    assert written.num_bytes == rewrite.num_bytes
    numbers = weigh(index, tensor_map, "parameters", **options)
    assert written.num_parameters <= numbers.rest + counts[0] * sum(numbers.experts)
    return max_bytes, written.num_bytes, counts[0]


@pytest.mark.parametrize("family", PASSING)
def test_every_family(tiny, tmp_path, family):
    max_bytes, written, count = write_within(tiny(family).folder, tmp_path / "new", 5, 0)
    assert (written <= max_bytes, count) == (True, 5)
    assert write_within(tiny(family).folder, tmp_path / "less", 5, 1)[2] == 4


@pytest.mark.parametrize("weights", ["keep", "bfloat16"])
@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_quantised(request, tmp_path, kind, weights):
    folder = request.getfixturevalue(kind)
    max_bytes, written, count = write_within(folder, tmp_path / "new", 5, 0, weights=weights)
    assert written <= max_bytes and count == 5
    assert write_within(folder, tmp_path / "less", 5, 1, weights=weights)[2] == 4
