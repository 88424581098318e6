"""Planned names, dtypes, shapes and sizes of a DeepSeek-V3 are what the shapes of one with half the experts say."""

from benchmarks.plan import find_wrong_size
from benchmarks.synthetic import deepseek_config, deepseek_tensors, lay_out, plan_half

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.families.derive import derive_tensor_map


def test_a_deepseek_v3_with_few_experts(tmp_path):
    # Transformers passes over the multi-token-prediction layer by its number, 61, so the depth must stay.
    config = deepseek_config(num_experts=64) | {"first_k_dense_replace": 57}
    lay_out(tmp_path / "source", config, list(deepseek_tensors(config)), 7, is_sparse=True)
    index = read_index(tmp_path / "source")
    tensor_map = derive_tensor_map(index.config, index.shapes)
    rewrite = plan_rewrite(index, tensor_map, plan_half(tensor_map.layout), max_shard_bytes=1_000_000_000)
    assert find_wrong_size(rewrite, config | {"n_routed_experts": 32}) is None
    assert "names differ" in find_wrong_size(rewrite, config | {"n_routed_experts": 31})
    assert "is planned as" in find_wrong_size(rewrite, config | {"n_routed_experts": 32, "vocab_size": 7})
