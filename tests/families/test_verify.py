"""The check before writing: exactly what stock loading would complain about."""

import pytest

from moe_compress.checkpoint.index import read_index
from moe_compress.errors import CheckpointError, UnsupportedModelError
from moe_compress.families.verify import verify_checkpoint


def test_what_transformers_saved_passes(qwen):
    verify_checkpoint(*qwen)


@pytest.fixture
def qwen(tiny):
    index = read_index(tiny("qwen3_moe").folder)
    return dict(index.config), index.shapes


def test_a_missing_tensor_fails(qwen):
    config, shapes = qwen
    del shapes["model.layers.0.mlp.gate.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.layers\.0\.mlp\.gate\.weight\)"):
        verify_checkpoint(config, shapes)


def test_an_unexpected_tensor_fails(qwen):
    config, shapes = qwen
    with pytest.raises(CheckpointError, match=r"1 unexpected \(model\.extra\)"):
        verify_checkpoint(config, shapes | {"model.extra": (1,)})


def test_one_router_row_too_few_fails(qwen):
    config, shapes = qwen
    shapes["model.layers.2.mlp.gate.weight"] = (7, 16)
    with pytest.raises(CheckpointError, match=r"1 mismatched .*\[7, 16\] instead of \[8, 16\]"):
        verify_checkpoint(config, shapes)


def test_one_expert_matrix_too_few_fails(qwen):
    config, shapes = qwen
    del shapes["model.layers.2.mlp.experts.7.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"experts\.gate_up_proj"):
        verify_checkpoint(config, shapes)


def test_a_count_that_was_not_updated_fails(qwen):
    config, shapes = qwen
    with pytest.raises(CheckpointError, match="mismatched"):
        verify_checkpoint(config | {"num_experts": 6, "num_local_experts": 6}, shapes)


def test_an_unknown_model_type_fails(qwen):
    with pytest.raises(UnsupportedModelError, match="nobody"):
        verify_checkpoint(qwen[0] | {"model_type": "nobody", "architectures": ["NobodyForCausalLM"]}, qwen[1])
