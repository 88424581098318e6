"""A masked model answers as one whose experts are gone; the oracle is transformers itself with fewer experts."""

import copy

import pytest
import torch
from tests import tiny_families
from tests.tiny_configs import FAMILIES, VOCABULARY

from moe_compress.errors import PlanError, UnsupportedModelError
from moe_compress.evaluation.masked import mask_experts

KEPT = ((0, 2, 3, 6), (1, 4, 5, 7), (0, 1, 2, 7))
NOT_MASKABLE = {"deepseek_v4", "ernie4_5_vl_moe_text", "inkling_text", "jetmoe", "longcat_flash", "zaya"}
NUM_MOE_LAYERS = {"qwen3_moe": 2, "glm4_moe": 2, "dots1": 2, "deepseek_v3": 2}
VARIANTS = [
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


def build(family, num_experts):
    model = tiny_families.build(family, num_experts)
    if family == "qwen3_omni_moe_thinker":  # its forward looks for places of images, and its config has no ids
        model.config.vision_start_token_id = model.config.audio_start_token_id = VOCABULARY
    return model


def slice_experts(whole, pruned, kept_of):
    """Give the smaller model the whole one's tensors, cut along the axis in which the two differ."""
    state = {}
    for (name, tensor), smaller in zip(whole.state_dict().items(), pruned.state_dict().values(), strict=True):
        differs = [axis for axis, size in enumerate(smaller.shape) if size != tensor.shape[axis]]
        if differs:
            kept = next(kept for place, kept in kept_of.items() if name.startswith(place))
            rows = tensor.shape[differs[0]] // tiny_families.NUM_EXPERTS
            index = [expert * rows + row for expert in kept for row in range(rows)]
            tensor = tensor.index_select(differs[0], torch.tensor(index))
        state[name] = tensor
    pruned.load_state_dict(state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_masked_equals_removed_or_is_refused(family):
    whole_count = tiny_families.NUM_EXPERTS
    whole, pruned = build(family, whole_count), build(family, 5)
    model_type = whole.config.get_text_config().model_type
    if model_type in NOT_MASKABLE:
        with (
            pytest.raises(UnsupportedModelError, match=f"'{model_type}' cannot be masked"),
            mask_experts(whole, []),
        ):
            pass
        return
    text = {id(module) for module in whole.get_decoder().modules()}
    places = [
        name.removesuffix("experts")
        for name, module in whole.named_modules()
        if name.endswith(".experts") and id(module) in text
    ]
    generator = torch.Generator().manual_seed(0)
    kept = [
        torch.randperm(tiny_families.NUM_EXPERTS, generator=generator)[:5].sort().values.tolist() for _ in places
    ]
    slice_experts(whole, pruned, dict(zip(places, kept, strict=True)))
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    with torch.no_grad():
        before, expected = whole(input_ids=ids).logits, pruned(input_ids=ids).logits
        with mask_experts(whole, kept):
            masked = whole(input_ids=ids).logits
        after = whole(input_ids=ids).logits
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=1e-5)
    assert (masked - before).abs().max() > 1e-3
    assert torch.equal(before, after)


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
