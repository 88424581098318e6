"""A masked model answers as one whose experts are gone; the oracle is transformers itself with fewer experts."""

import copy

import pytest
import torch

from moe_compress.errors import PlanError, UnsupportedModelError
from moe_compress.evaluation.masked import SIGMOID_FAMILIES, SOFTMAX_FAMILIES, mask_experts

KEPT = ((0, 2, 3, 6), (1, 4, 5, 7), (0, 1, 2, 7))
NUM_MOE_LAYERS = {"qwen3_moe": 2, "glm4_moe": 2, "dots1": 2, "deepseek_v3": 2}
VARIANTS = [(family, {}) for family in sorted(SOFTMAX_FAMILIES | SIGMOID_FAMILIES)] + [
    ("qwen2_moe", {"norm_topk_prob": False}),
    ("olmoe", {"norm_topk_prob": False}),
    ("deepseek_v3", {"n_group": 2, "topk_group": 1, "num_experts": 8}),
]


def remove_experts(make_model, family, whole, kept_per_layer, overrides):
    """Build the family's model with 4 experts and copy the kept experts' weights, router rows and biases."""
    pruned = make_model(family, **(overrides | {"num_experts": 4}))
    sparse = [n for n, layer in enumerate(whole.model.layers) if hasattr(layer.mlp, "experts")]
    kept = dict(zip(sparse, kept_per_layer, strict=True))
    state = {}
    for name, tensor in whole.state_dict().items():
        of_experts = ".mlp.experts." in name or ".mlp.gate." in name
        state[name] = tensor[list(kept[int(name.split(".")[2])])] if of_experts else tensor
    pruned.load_state_dict(state)
    return pruned


@pytest.mark.parametrize(("family", "overrides"), VARIANTS, ids=lambda value: str(value))
def test_masked_equals_removed(make_model, family, overrides):
    whole = make_model(family, **overrides)
    kept = KEPT[: NUM_MOE_LAYERS.get(family, 3)]
    if "n_group" in overrides:
        kept = ((0, 2, 5, 7), (1, 3, 4, 6))
    pruned = remove_experts(make_model, family, whole, kept, overrides)
    ids = torch.randint(whole.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, expected = whole(ids).logits, pruned(ids).logits
        with mask_experts(whole, kept):
            masked = whole(ids).logits
        after = whole(ids).logits
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=1e-5)
    assert (masked - before).abs().max() > 1e-2
    assert torch.equal(before, after)


def test_keeping_all_is_the_identity(model):
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with mask_experts(model, [range(8)] * 2):
            assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
def test_an_error_inside_leaves_the_model_as_it_was(make_model, family):
    model = make_model(family)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), mask_experts(model, KEPT[:2]):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_other_families_are_refused_by_name(make_model):
    with (
        pytest.raises(UnsupportedModelError, match="experts of 'gpt_oss' cannot be masked"),
        mask_experts(make_model("gpt_oss"), KEPT),
    ):
        pass


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (KEPT, "covers 3 layers, the model has 2"),
        ([(0, 1), (3,)], "MoE layer 1 .* keeps 1 experts, but the router picks top_k=2"),
        ([(0, 8), (0, 1)], r"MoE layer 0 .* outside 0\.\.7"),
        ([(0, 0, 1), (0, 1)], "MoE layer 0 .* some twice"),
    ],
)
def test_plans_of_another_model_are_refused(model, kept, message):
    with pytest.raises(PlanError, match=message), mask_experts(model, kept):
        pass


def test_uneven_groups_are_refused(make_model):
    grouped = make_model("deepseek_v3", n_group=2, topk_group=1)
    with (
        pytest.raises(PlanError, match=r"keeps \[3, 1\] experts of its router's groups"),
        mask_experts(grouped, [(0, 1, 2, 4), (0, 1, 4, 5)]),
    ):
        pass
