"""The rewrite's table of engines: about what will be written, not what was read."""

import pytest
from tests.families.quantised_checkpoints import FP8, encode_fp8, make_model, save, unfuse, write_config

from moe_compress.checkpoint.index import read_index
from moe_compress.families.derive import derive_tensor_map
from moe_compress.pipelines.parameters import RewriteParameters
from moe_compress.pipelines.rewrite import check_compatibility
from moe_compress.types import CheckpointReference, CompressionPlan, pruning_groups


@pytest.mark.parametrize(("weights", "is_told"), [("keep", True), ("bfloat16", False)])
def test_quantisation_counts_where_it_stays(tmp_path, weights, is_told):
    model = make_model("deepseek_v3")
    config = write_config(model, quantization_config=FP8)
    folder = save(tmp_path / "model", config, encode_fp8(unfuse(model.state_dict())))
    index = read_index(folder)
    layout = derive_tensor_map(index.config, index.shapes).layout
    plan = CompressionPlan(layout, (pruning_groups(range(4)),) * len(layout.layers), "test")
    base_model = CheckpointReference(folder, "tiny", "0", "0")
    stock, *_ = check_compatibility(base_model, plan, RewriteParameters(weights=weights))
    assert any("de-quantised" in reason.text for reason in stock.reasons) == is_told
