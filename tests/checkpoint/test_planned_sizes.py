"""Every planned name, dtype, shape and size of a DeepSeek-V3 is what the shapes of a smaller one say."""

from benchmarks.plan import find_wrong_size
from benchmarks.synthetic import deepseek_config, deepseek_tensors, lay_out, plan_half

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.families.derive import derive_tensor_map


def test_a_shallow_deepseek_v3(tmp_path):
    config = deepseek_config(num_layers=5, num_experts=64)
    lay_out(tmp_path / "source", config, list(deepseek_tensors(config)), 7, is_sparse=True)
    index = read_index(tmp_path / "source")
    tensor_map = derive_tensor_map(index.config, index.shapes)
    rewrite = plan_rewrite(index, tensor_map, plan_half(tensor_map.layout), max_shard_bytes=1_000_000_000)
    assert find_wrong_size(rewrite, config | {"n_routed_experts": 32}) is None
    assert "names differ" in find_wrong_size(rewrite, config | {"n_routed_experts": 31})
    assert "is planned as" in find_wrong_size(rewrite, config | {"n_routed_experts": 32, "vocab_size": 7})
