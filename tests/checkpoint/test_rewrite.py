"""The plan of a rewrite: which bytes, under which name, and what the config says then."""

import itertools
from dataclasses import replace

import pytest
from tests.checkpoint.conftest import LAYERS, make_layout, make_map, make_plan, save

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.jobs import ByteRange, Mean
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.errors import CheckpointError, PlanError
from moe_compress.types import CompressionPlan, ExpertGroup, TensorRole, pruning_groups


def jobs_of(rewrite):
    return {job.name: job for shard in rewrite.shards for job in shard.jobs}


def test_pruning_renumbers_experts_and_keeps_rows(source):
    index = read_index(source)
    jobs = jobs_of(plan_rewrite(index, make_map(), make_plan(0, 3)))
    old = index.tensors["layers.3.experts.3.up.weight"]
    assert jobs["layers.3.experts.1.up.weight"].pieces == (ByteRange(old.file, old.start, old.num_bytes),)
    assert "layers.3.experts.2.up.weight" not in jobs
    gate = index.tensors["layers.3.gate.weight"]  # [4, 3] float32: 12 bytes a row
    assert jobs["layers.3.gate.weight"].shape == (2, 3)
    assert jobs["layers.3.gate.weight"].pieces == tuple(ByteRange(gate.file, gate.start + n, 12) for n in (0, 36))
    assert jobs["layers.3.gate.bias"].shape == (1, 2)
    assert jobs["layers.3.fused"].shape == (4, 5)  # two rows for each of two experts


def test_merging_weighs_experts_and_averages_router_rows(source):
    plan = make_plan(ExpertGroup((0, 2), (0.75, 0.25)), 1)
    jobs = jobs_of(plan_rewrite(read_index(source), make_map(), plan))
    (expert,) = jobs["layers.1.experts.0.up.weight"].pieces
    assert isinstance(expert, Mean)
    assert expert.weights == (0.75, 0.25)
    fused, alone = jobs["layers.1.fused"].pieces
    assert fused.weights == (0.75, 0.25)
    assert isinstance(alone, ByteRange)
    row, _ = jobs["layers.1.gate.weight"].pieces
    assert row.weights == (0.5, 0.5)


def test_an_expert_axis_that_is_not_the_first(source):
    index = read_index(source)
    tensor_map = make_map()
    # fused [8, 5] read as 8 rows of 5 experts: each row gives up its own columns
    roles = dict(tensor_map.roles) | {f"layers.{n}.fused": TensorRole("expert_axis", n, axis=1) for n in LAYERS}
    job = jobs_of(plan_rewrite(index, replace(tensor_map, roles=roles), make_plan(1, 2)))["layers.1.fused"]
    start = index.tensors["layers.1.fused"].start
    assert job.shape == (8, 2)
    assert [piece.start - start for piece in job.pieces] == [4 * (5 * row + e) for row in range(8) for e in (1, 2)]


def test_only_the_counts_change_in_the_config(source):
    config = read_index(source).config
    changed = plan_rewrite(read_index(source), make_map(), make_plan(0, 3)).config
    assert changed == {"num_experts": 2, "text": {"count": 2, "width": 3}, "name": "näme"}
    assert config["text"]["count"] == 4


def test_shards_are_filled_up_to_their_size(source):
    rewrite = plan_rewrite(read_index(source), make_map(), make_plan(0, 3), max_shard_bytes=100)
    sizes = [sum(job.num_bytes for job in shard.jobs) for shard in rewrite.shards]
    assert max(sizes) <= 100
    assert all(first + second > 100 for first, second in itertools.pairwise(sizes))  # none could have held both
    assert (
        all(a + shard.jobs[0].num_bytes > 100 for a, shard in zip(sizes, rewrite.shards[1:], strict=False)) or sizes
    )
    assert [shard.file for shard in rewrite.shards][-1] == f"model-{len(sizes):05d}-of-{len(sizes):05d}.safetensors"
    assert rewrite.index["metadata"]["total_size"] == sum(sizes)
    assert rewrite.index["weight_map"].keys() == rewrite.tensors.keys()


def test_a_tensor_larger_than_a_shard_gets_its_own(source):
    rewrite = plan_rewrite(read_index(source), make_map(), make_plan(0, 3), max_shard_bytes=1)
    assert [len(shard.jobs) for shard in rewrite.shards] == [1] * len(rewrite.tensors)


def test_one_file_needs_no_index(source):
    rewrite = plan_rewrite(read_index(source), make_map(), make_plan(0, 3))
    assert rewrite.index is None
    assert [shard.file for shard in rewrite.shards] == ["model.safetensors"]


def test_every_tensor_starts_at_a_multiple_of_its_element(tmp_path):
    rewrite = plan_rewrite(read_index(save(tmp_path / "c", 1)), make_map(), make_plan(0, 1, 3))
    widths = {"F32": 4, "F16": 2}
    assert {info.dtype for info in rewrite.tensors.values()} == widths.keys()
    assert all(info.start % widths[info.dtype] == 0 for info in rewrite.tensors.values())


def refuse(source, plan, words, tensor_map=None, error=PlanError):
    with pytest.raises(error, match=words):
        plan_rewrite(read_index(source), tensor_map or make_map(plan.layout), plan)


def test_a_plan_for_another_checkpoint(source):
    refuse(
        source, make_plan(0, 1, layout=make_layout(top_k=2)), "the plan is for 2 layers of 4 experts", make_map()
    )


def test_a_map_of_another_checkpoint(source):
    tensor_map = make_map()
    roles = {name: role for name, role in tensor_map.roles.items() if name != "embed.weight"}
    refuse(source, make_plan(0), "differ in 1 tensors, first 'embed.weight'", replace(tensor_map, roles=roles))


@pytest.mark.parametrize("weights", [(0.5, 0.4), (1.0, 1.0), (float("nan"), 1.0)])
def test_weights_that_would_rescale_an_expert(source, weights):
    refuse(source, make_plan(ExpertGroup((0, 2), weights)), "make them sum to 1")


def test_a_lone_member_with_another_weight(source):
    refuse(source, make_plan(ExpertGroup((0,), (0.5,))), r"sum to 0\.5")


GROUPED = make_layout(num_groups=2, topk_groups=2)


def test_a_group_limited_router_kept_whole(source):
    rewrite = plan_rewrite(read_index(source), make_map(GROUPED), make_plan(0, 1, 2, 3, layout=GROUPED))
    assert rewrite.shapes == read_index(source).shapes


def test_groups_that_are_given_up_go_from_the_config(tmp_path):
    config = {"num_experts": 4, "text": {"count": 4, "n_group": 2, "topk_group": 2}, "n_group": 2}
    index = read_index(save(tmp_path / "grouped", config=config))
    tensor_map = replace(make_map(GROUPED), group_keys=("text.n_group", "text.topk_group", "n_group"))
    plan = replace(make_plan(0, 1, 2, layout=make_layout()), layout=GROUPED, router_groups="flatten")
    changed = plan_rewrite(index, tensor_map, plan).config
    assert changed == {"num_experts": 3, "text": {"count": 3, "n_group": 1, "topk_group": 1}, "n_group": 1}
    kept = plan_rewrite(index, tensor_map, make_plan(0, 1, 2, 3, layout=GROUPED)).config
    assert kept == config


def test_groups_nobody_knows_the_place_of_are_not_given_up(source):
    plan = replace(make_plan(0, 1, 2, layout=make_layout()), layout=GROUPED, router_groups="flatten")
    refuse(source, plan, "gives up the router's 2 groups, but where config.json tells them is not known")


UNEVEN = CompressionPlan(make_layout(), (pruning_groups([0]), pruning_groups([0, 1])), "test")


def test_layers_of_different_size(source):
    refuse(
        source, UNEVEN, r"between 1 and 2 experts, .* \(select.budget.scope: per_layer\), or .*layout: per_layer"
    )


def test_the_per_layer_layout_tells_what_is_smaller(source):
    rewrite = plan_rewrite(
        read_index(source), replace(make_map(), count_keys=("num_experts",)), UNEVEN, layout="per_layer"
    )
    assert rewrite.config["num_experts"] == 2
    assert rewrite.config["per_layer_config"] == {"1": {"num_experts": 1}}
    assert rewrite.shapes["layers.1.gate.weight"] == (1, 3)
    assert rewrite.shapes["layers.3.gate.weight"] == (2, 3)


def test_the_per_layer_layout_adds_nothing_where_layers_are_alike(source):
    index = read_index(source)
    assert plan_rewrite(index, make_map(), make_plan(0, 3), layout="per_layer") == plan_rewrite(
        index, make_map(), make_plan(0, 3)
    )


def test_averaging_a_dtype_that_has_no_average(source):
    index = read_index(source)
    name = "layers.1.experts.0.up.weight"
    odd = replace(index, tensors=dict(index.tensors) | {name: replace(index.tensors[name], dtype="F8_E4M3")})
    plan = make_plan(ExpertGroup((0, 2), (0.5, 0.5)), 1)
    with pytest.raises(PlanError, match="is stored as F8_E4M3, and only BF16, F16, F32 can be averaged"):
        plan_rewrite(odd, make_map(), plan)


@pytest.mark.parametrize(
    "role", [TensorRole("expert_axis", 1, rows_per_expert=3), TensorRole("expert_axis", 1, rows_per_expert=4)]
)
def test_a_role_that_contradicts_the_shape(source, role):
    tensor_map = make_map()
    roles = dict(tensor_map.roles) | {"layers.1.fused": role}
    refuse(source, make_plan(0, 3), "its role is not understood", replace(tensor_map, roles=roles), CheckpointError)
