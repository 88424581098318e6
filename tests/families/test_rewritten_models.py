"""Transformers as the oracle: what the file rewriter writes is the model one would get in memory."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.families.conftest import FAMILIES, NUM_EXPERTS, Tiny, build, load
from torch.overrides import TorchFunctionMode

from moe_compress import methods
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import Budget, CompressionPlan, ExpertGroup, ExpertStatistics, pruning_groups

ALL = sorted(FAMILIES)
TOP_K_FIRST = ["deepseek_v3", "dots1", "glm4_moe", "gpt_oss", "granitemoe"]


def rewrite(source, destination, groups_per_layer):
    index = read_index(source)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    plan = CompressionPlan(tensor_map.layout, tuple(groups_per_layer), "test")
    planned = plan_rewrite(index, tensor_map, plan, max_shard_bytes=40_000)
    verify_checkpoint(planned.config, planned.shapes)
    write_checkpoint(planned, destination)
    return planned


def prune(source, destination, kept):
    return rewrite(source, destination, [pruning_groups(experts) for experts in kept.values()])


def read_bytes(folder):
    """Return tensor name -> raw bytes, read by the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[name] = tensor.view(torch.uint8).numpy().tobytes()
    return found


def kept_experts(model: Tiny):
    """Return different experts for each layer, the same number of them."""
    return {layer: sorted((layer + 3 * i) % NUM_EXPERTS for i in range(5)) for layer in model.moe_layers}


class MaskedRouters(TorchFunctionMode):
    """Give dropped experts the logit -inf wherever a router's linear map is computed."""

    def __init__(self, model, kept):
        super().__init__()
        self.dropped = {}
        for layer, experts in kept.items():
            mlp = getattr(model.model.layers[layer], "mlp", None) or model.model.layers[layer].block_sparse_moe
            router = getattr(mlp, "gate", None) or mlp.router
            self.dropped[id(router.weight)] = [e for e in range(NUM_EXPERTS) if e not in experts]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear and id(args[1]) in self.dropped:
            output[..., self.dropped[id(args[1])]] = -torch.inf
        return output


@pytest.mark.parametrize("family", ALL)
def test_pruned_files_are_the_model_pruned_in_memory(tiny, tokens, tmp_path, family):
    model = tiny(family)
    kept = kept_experts(model)
    prune(model.folder, tmp_path / "new", kept)
    in_memory = model.sliced(kept)
    loaded = load(tmp_path / "new")
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(loaded(tokens).logits, in_memory(tokens).logits)


@pytest.mark.parametrize("family", ALL)
def test_pruning_is_masking_the_router(tiny, tokens, tmp_path, family):
    model = tiny(family)
    kept = kept_experts(model)
    prune(model.folder, tmp_path / "new", kept)
    masked = load(model.folder)
    for name, tensor in masked.state_dict().items():
        if name.endswith("e_score_correction_bias"):  # sigmoid routers choose by score plus this
            layer = int(name.split(".")[2])
            tensor[[e for e in range(NUM_EXPERTS) if e not in kept[layer]]] = -torch.inf
    with MaskedRouters(masked, kept):
        expected = masked(tokens).logits
    torch.testing.assert_close(load(tmp_path / "new")(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.model(tokens).logits, expected, atol=1e-3)


@pytest.mark.parametrize("family", TOP_K_FIRST)
def test_dropping_experts_never_chosen_changes_no_bit(tiny, tokens, tmp_path, family):
    # One feature per router row: a logit is one product, the same bits however many rows are multiplied.
    model = load(tiny(family).folder)
    for name, tensor in model.state_dict().items():
        if name.endswith((".gate.weight", ".router.weight")):
            tensor.copy_(torch.eye(*tensor.shape))
    model.save_pretrained(tmp_path / "old")
    few = tokens[:1, :3]
    chosen = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, __, at=name: chosen.update({at: set(args[1].flatten().tolist())})
        )
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    expected = model(few).logits
    for hook in hooks:
        hook.remove()
    size = max(map(len, chosen.values()))
    assert size < NUM_EXPERTS
    kept = {}
    for name, used in chosen.items():
        spare = [expert for expert in range(NUM_EXPERTS) if expert not in used]
        kept[name] = sorted([*used, *spare[: size - len(used)]])
    prune(tmp_path / "old", tmp_path / "new", kept)
    assert torch.equal(load(tmp_path / "new")(few).logits, expected)


@pytest.mark.parametrize("family", ALL)
def test_keeping_all_is_the_identity(tiny, tmp_path, family):
    model = tiny(family)
    prune(model.folder, tmp_path / "new", {layer: range(NUM_EXPERTS) for layer in model.moe_layers})
    assert read_bytes(tmp_path / "new") == read_bytes(model.folder)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (model.folder, tmp_path / "new")
    )
    assert before.items() <= after.items()


@pytest.mark.parametrize("family", ALL)
def test_kept_tensors_are_byte_identical_and_the_rest_accounted_for(tiny, tmp_path, family):
    model = tiny(family)
    kept = kept_experts(model)
    planned = prune(model.folder, tmp_path / "new", kept)
    index = read_index(model.folder)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    old, new = read_bytes(model.folder), read_bytes(tmp_path / "new")
    expected = {}
    for name, role in tensor_map.roles.items():
        if role.kind == "untouched":
            expected[name] = old[name]
        elif role.kind == "expert" and role.expert in kept[role.layer]:
            expected[tensor_map.rename(name, kept[role.layer].index(role.expert))] = old[name]
        elif role.kind == "expert_axis":
            slice_bytes = len(old[name]) // NUM_EXPERTS  # every family here puts experts first
            expected[name] = b"".join(old[name][e * slice_bytes : (e + 1) * slice_bytes] for e in kept[role.layer])
    assert new == expected
    assert sum(file.stat().st_size for file in (tmp_path / "new").glob("*.safetensors")) == planned.num_bytes


@pytest.mark.parametrize("family", ALL)
def test_merging_is_the_weighted_mean_of_experts_and_the_mean_of_router_rows(tiny, tmp_path, family):
    model = tiny(family)
    weights = {0: (1.0,), 1: (0.25, 0.75), 2: (0.5, 0.3, 0.2), 3: (1.0,)}
    members = {0: (0,), 1: (1, 5), 2: (2, 7, 4), 3: (6,)}
    groups = tuple(ExpertGroup(members[new], weights[new]) for new in members)
    rewrite(model.folder, tmp_path / "new", [groups] * len(model.moe_layers))
    loaded = load(tmp_path / "new").state_dict()
    for name, tensor in model.state.items():
        if ".experts." in name and "shared" not in name:
            expected = [sum(w * tensor[m] for m, w in zip(members[n], weights[n], strict=True)) for n in members]
        elif loaded[name].shape != tensor.shape:
            expected = [tensor[list(members[n])].mean(dim=0) for n in members]
        else:
            assert torch.equal(loaded[name], tensor), name
            continue
        torch.testing.assert_close(loaded[name], torch.stack(expected), msg=name)


def test_merging_twins_is_pruning_one_of_them(tiny, tokens, tmp_path):
    source = tiny("qwen3_moe")
    twins = load(source.folder)
    for name, tensor in twins.state_dict().items():
        if ".mlp.experts." in name or ".mlp.gate.weight" in name:
            tensor[5] = tensor[2]
    twins.save_pretrained(tmp_path / "twins")
    merged = (*pruning_groups([0, 1]), ExpertGroup((2, 5), (0.5, 0.5)), *pruning_groups([3, 4]))
    rewrite(tmp_path / "twins", tmp_path / "merged", [merged] * 2)
    rewrite(tmp_path / "twins", tmp_path / "pruned", [pruning_groups(range(5))] * 2)
    assert read_bytes(tmp_path / "merged") == read_bytes(tmp_path / "pruned")
    assert torch.equal(load(tmp_path / "merged")(tokens).logits, load(tmp_path / "pruned")(tokens).logits)


def test_both_names_of_the_count_are_written_for_old_engines(tiny, tmp_path):
    source = tiny("qwen3_moe")
    prune(source.folder, tmp_path / "new", kept_experts(source))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (config["num_experts"], config["num_local_experts"]) == (5, 5)
    before = json.loads((source.folder / "config.json").read_text())
    assert {key: value for key, value in config.items() if before.get(key) != value}.keys() <= {
        "num_experts",
        "num_local_experts",
    }


GROUPED = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}


def save_grouped(family, folder):
    """Save a tiny model whose router picks 2 of 4 groups of 4 experts, then 3 experts in them."""
    torch.manual_seed(5)
    model = build(family, n_routed_experts=16, **GROUPED)
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return Tiny(family, model, folder)


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
@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_group_limited_models_are_those_sliced_in_memory(tmp_path, tokens, family, router_groups):
    model = save_grouped(family, tmp_path / "old")
    tensor_map, plan = plan_by_score(tmp_path / "old", router_groups)
    planned = plan_rewrite(read_index(tmp_path / "old"), tensor_map, plan)
    verify_checkpoint(planned.config, planned.shapes)
    write_checkpoint(planned, tmp_path / "new")
    loaded = load(tmp_path / "new")
    groups = GROUPED if router_groups == "balanced" else GROUPED | {"n_group": 1, "topk_group": 1}
    assert {key: getattr(loaded.config, key) for key in groups} == groups
    kept = {layer: list(experts) for layer, experts in zip(plan.layout.layers, plan.kept, strict=True)}
    per_group = [[sum(e // 4 == group for e in experts) for group in range(4)] for experts in plan.kept]
    assert (per_group == [[2] * 4] * 2) == (router_groups == "balanced")
    in_memory = model.sliced(kept, **groups)
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(loaded(tokens).logits, in_memory(tokens).logits)


def test_balanced_routing_is_masking_inside_the_groups(tmp_path, tokens):
    save_grouped("deepseek_v3", tmp_path / "old")
    tensor_map, plan = plan_by_score(tmp_path / "old", "balanced")
    write_checkpoint(plan_rewrite(read_index(tmp_path / "old"), tensor_map, plan), tmp_path / "new")
    masked = load(tmp_path / "old")
    for layer, kept in zip(plan.layout.layers, plan.kept, strict=True):
        bias = masked.model.layers[layer].mlp.gate.e_score_correction_bias
        bias[[expert for expert in range(16) if expert not in kept]] = -torch.inf
    torch.testing.assert_close(load(tmp_path / "new")(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=1e-5)
