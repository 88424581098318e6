"""Routers that pick among groups of experts: what is written is the model one would get in memory."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny_families import build, load, save

from moe_compress import methods
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import Budget, ExpertStatistics

FAMILIES = ["deepseek_v3", "glm4_moe"]
GROUPED = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}


OF_EXPERTS = re.compile(r"\.mlp\.(experts|gate)\.")


def slice_in_memory(family, model, kept, groups):
    """Return a model of 8 experts a layer with the parameters of the kept ones; `kept` is layer -> old experts."""
    values = {}
    for name, tensor in model.state_dict().items():
        layer = int(match[1]) if (match := re.search(r"layers\.(\d+)\.", name)) else None
        values[name] = tensor[kept[layer]] if OF_EXPERTS.search(name) else tensor
    sliced = build(family, 8, **groups)
    sliced.load_state_dict(values, strict=True)
    return sliced


def plan_by_score(folder, router_groups):
    """Return the tensor map of a checkpoint and the plan that keeps half of its experts by random scores."""
    index = read_index(folder)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    if not tensor_map.group_keys:
        tensor_map = replace(tensor_map, group_keys=("n_group", "topk_group"))
    layout = tensor_map.layout
    gate = np.random.default_rng(2).random((len(layout.layers), 16))
    statistics = ExpertStatistics("toy", layout, {"gate": gate}, 0)
    return tensor_map, methods.plan("gating_score", statistics, Budget(fraction_dropped=0.5), 0, router_groups)


@pytest.mark.parametrize("router_groups", ["balanced", "flatten"])
@pytest.mark.parametrize("family", FAMILIES)
def test_group_limited_models_are_those_sliced_in_memory(tmp_path, tokens, family, router_groups):
    model = save(family, tmp_path / "old", num_experts=16, **GROUPED)
    tensor_map, plan = plan_by_score(tmp_path / "old", router_groups)
    planned = plan_rewrite(read_index(tmp_path / "old"), tensor_map, plan)
    verify_checkpoint(planned.config, planned.shapes)
    write_checkpoint(planned, tmp_path / "new")
    loaded = load(family, tmp_path / "new")
    groups = GROUPED if router_groups == "balanced" else GROUPED | {"n_group": 1, "topk_group": 1}
    assert {key: getattr(loaded.config, key) for key in groups} == groups
    kept = {layer: list(experts) for layer, experts in zip(plan.layout.layers, plan.kept, strict=True)}
    per_group = [[sum(e // 4 == group for e in experts) for group in range(4)] for experts in plan.kept]
    assert (per_group == [[2] * 4] * 2) == (router_groups == "balanced")
    in_memory = slice_in_memory(family, model, kept, groups)
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(loaded(tokens).logits, in_memory(tokens).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_balanced_routing_is_masking_inside_the_groups(tmp_path, tokens, family):
    save(family, tmp_path / "old", num_experts=16, **GROUPED)
    tensor_map, plan = plan_by_score(tmp_path / "old", "balanced")
    write_checkpoint(plan_rewrite(read_index(tmp_path / "old"), tensor_map, plan), tmp_path / "new")
    masked = load(family, tmp_path / "old")
    for layer, kept in zip(plan.layout.layers, plan.kept, strict=True):
        bias = masked.model.layers[layer].mlp.gate.e_score_correction_bias
        bias[[expert for expert in range(16) if expert not in kept]] = -torch.inf
    torch.testing.assert_close(
        load(family, tmp_path / "new")(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=1e-5
    )
