"""The rewrite's table of engines: about what will be written, not what was read."""

from dataclasses import replace

import pytest
from tests.families.quantised_checkpoints import FP8, encode_fp8, make_model, save, unfuse, write_config

from moe_compress.checkpoint.index import read_index
from moe_compress.families.derive import derive_tensor_map
from moe_compress.pipelines.parameters import RewriteParameters
from moe_compress.pipelines.rewrite import check_compatibility, describe_outcome
from moe_compress.types import CheckpointReference, CompressionPlan, pruning_groups


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A checkpoint in FP8, and a plan for it."""
    model = make_model("deepseek_v3")
    config = write_config(model, quantization_config=FP8)
    folder = save(tmp_path_factory.mktemp("fp8") / "model", config, encode_fp8(unfuse(model.state_dict())))
    index = read_index(folder)
    layout = derive_tensor_map(index.config, index.shapes).layout
    return index, CompressionPlan(layout, (pruning_groups(range(4)),) * len(layout.layers), "test")


@pytest.mark.parametrize(("weights", "is_told"), [("keep", True), ("bfloat16", False)])
def test_quantisation_counts_where_it_stays(quantised, weights, is_told):
    index, plan = quantised
    base_model = CheckpointReference(index.folder, "tiny", "0", "0")
    stock, *_ = check_compatibility(base_model, plan, RewriteParameters(weights=weights))
    assert any("de-quantised" in reason.text for reason in stock.reasons) == is_told


def test_the_dtype_is_that_of_what_is_written(quantised):
    index, plan = quantised
    codes = replace(index, tensors={name: i for name, i in index.tensors.items() if i.dtype == "F8_E4M3"})
    assert describe_outcome(codes, plan, "keep").dtype == "F8_E4M3"
    assert describe_outcome(codes, plan, "bfloat16").dtype == "BF16"
    plain = replace(codes, config={**index.config, "quantization_config": None})
    assert describe_outcome(plain, plan, "bfloat16").dtype == "F8_E4M3"  # what is not quantised stays as it is


@pytest.mark.parametrize("names", [["SomeForCausalLM", "Other"], "SomeForCausalLM"])
def test_the_architecture_is_the_first_name(quantised, names):
    index, plan = quantised
    named = replace(index, config={**index.config, "architectures": names})
    assert describe_outcome(named, plan, "keep").architecture == "SomeForCausalLM"
    assert describe_outcome(replace(named, config={}), plan, "keep").architecture == ""
