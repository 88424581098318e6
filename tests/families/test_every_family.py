"""The contract of every family, with transformers as the oracle: the files written are the model cut in memory."""

import json
import re
from dataclasses import replace

import pytest
import torch
from tests.families.conftest import PASSING, REFUSED, keep_five, prune, read_bytes, rewrite
from tests.tiny_configs import NUM_EXPERTS
from tests.tiny_families import load

from moe_compress.checkpoint.index import read_index
from moe_compress.collection.resident import settle_weights
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.config_keys import COUNT_NAMES
from moe_compress.families.derive import derive_tensor_map
from moe_compress.types import ExpertGroup, pruning_groups

# Scores of fewer experts may round otherwise: a softmax sums one term fewer, and vectors of sigmoids end elsewhere.
ROUNDING = 5e-6


@pytest.mark.parametrize("family", PASSING)
def test_every_tensor_has_one_role(tiny, family):
    model = tiny(family)
    index = read_index(model.folder)
    found = derive_tensor_map(index.config, index.shapes)
    assert set(found.roles) == set(index.tensors)
    assert found.layout.layers == tuple(model.moe_layers)
    assert found.layout.num_experts == (NUM_EXPERTS,) * len(model.moe_layers)
    assert (found.layout.top_k, found.layout.num_groups) == (1 if family == "zaya" else 2, 1)
    for name, role in found.roles.items():
        if role.kind == "expert":
            number = re.search(r"experts\.(\d+)\.", name)[1]
            assert role.expert == int(number)
            assert found.rename(name, 77) == name.replace(f"experts.{number}.", "experts.77.")
        if role.kind == "expert_axis":
            size = index.shapes[name][role.axis]
            assert size == NUM_EXPERTS * role.rows_per_expert + role.num_others


@pytest.mark.parametrize("family", PASSING)
def test_pruned_files_are_the_model_pruned_in_memory(tiny, tokens, tmp_path, family):
    model = tiny(family)
    kept = keep_five(model)
    planned = prune(model.folder, tmp_path / "new", kept)
    in_memory, loaded = settle_weights(model.sliced(kept)), load(family, tmp_path / "new")
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(loaded(tokens).logits, in_memory(tokens).logits)
    assert sum(file.stat().st_size for file in (tmp_path / "new").glob("*.safetensors")) == planned.num_bytes


@pytest.mark.parametrize("family", PASSING)
@torch.no_grad()
def test_dropping_experts_never_chosen_changes_nothing(tiny, tokens, tmp_path, family):
    few, source = tokens[:1, :3], tiny(family)
    kept = keep_five(source)
    model = load(family, source.folder)
    never_choose(source, model, {layer: sorted(set(range(NUM_EXPERTS)) - set(kept[layer])) for layer in kept}, few)
    model.save_pretrained(tmp_path / "old")
    prune(tmp_path / "old", tmp_path / "new", kept)
    expected, got = (load(family, tmp_path / folder)(few).logits for folder in ("old", "new"))
    torch.testing.assert_close(got, expected, atol=ROUNDING, rtol=0)
    others = {layer: [*(set(range(NUM_EXPERTS)) - set(kept[layer])), *kept[layer][:2]] for layer in kept}
    without_the_chosen = replace(source, model=model).sliced(others)
    assert not torch.allclose(without_the_chosen(few).logits, expected, atol=1e-4)


def never_choose(source, model, dropped, tokens):
    """Make the routers of a model score some experts so low that no token gets them.

    In one forward, layer by layer, a dropped expert's row becomes a vector whose product with every token's hidden
    state is -1000. A kept one's picks one feature: a single product, the same bits however many rows there are.

    Args:
        source: knows where the routers are.
        model: is changed.
        dropped: layer -> experts.
        tokens: `[1, T]`, fewer than the hidden state has features.
    """

    def write_rows(experts):
        def hook(module, inputs):
            hidden_TH = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            row_H = torch.linalg.pinv(hidden_TH) @ torch.full((len(hidden_TH),), -1000.0).double()
            module.weight.copy_(torch.eye(*module.weight.shape))
            module.weight[experts] = row_H.to(module.weight.dtype)

        return hook

    hooks = []
    for name, (layer, axis) in source.expert_axes.items():
        tensor, (owner, _, last) = model.state_dict()[name], name.rpartition(".")
        if tensor.squeeze().dim() == 1 and "bias" in last:
            tensor.index_fill_(axis, torch.tensor(dropped[layer]), -10.0)
        elif last == "weight" and ".experts." not in name:
            hooks.append(model.get_submodule(owner).register_forward_pre_hook(write_rows(dropped[layer])))
    assert len(hooks) == len(dropped)
    model(tokens)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    "family", ["dbrx", "ernie4_5_moe", "gpt_oss", "inkling2", "mixtral", "qwen3_vl_moe", "zaya"]
)
def test_keeping_all_is_the_identity(tiny, tmp_path, family):
    model = tiny(family)
    prune(model.folder, tmp_path / "new", {layer: range(NUM_EXPERTS) for layer in model.moe_layers})
    assert read_bytes(tmp_path / "new") == read_bytes(model.folder)


@pytest.mark.parametrize("family", PASSING)
def test_only_the_count_changes_in_the_config(tiny, tmp_path, family):
    model = tiny(family)
    prune(model.folder, tmp_path / "new", keep_five(model))
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (model.folder, tmp_path / "new")
    )
    assert before != after
    if family in ("qwen3_moe", "qwen3_vl_moe", "internvl"):  # the name other engines read is added
        text = after.get("text_config", after)
        assert text.pop("num_experts") == text["num_local_experts"] == 5
    assert _with_five(before) == after


def _with_five(config):
    """Return a config with every number of experts of the language model set to 5."""
    nested = {key: _with_five(part) for key, part in config.items() if isinstance(part, dict)}
    return config | nested | {key: 5 for key in COUNT_NAMES if config.get(key) == NUM_EXPERTS}


@pytest.mark.parametrize("family", PASSING)
def test_merging_twins_is_pruning_one_of_them(tiny, tmp_path, family):
    source = tiny(family)
    twins = load(family, source.folder)
    values = twins.state_dict()
    for name, (_, axis) in source.expert_axes.items():
        size = values[name].shape[axis]
        two, five = (torch.tensor(source.rows_of(size, [e]))[: size // NUM_EXPERTS] for e in (2, 5))
        values[name].index_copy_(axis, five, values[name].index_select(axis, two))
    twins.save_pretrained(tmp_path / "twins")
    merged = (*pruning_groups([0, 1]), ExpertGroup((2, 5), (0.5, 0.5)), *pruning_groups([3, 4]))
    layers = len(source.moe_layers)
    rewrite(tmp_path / "twins", tmp_path / "merged", [merged] * layers)
    rewrite(tmp_path / "twins", tmp_path / "pruned", [pruning_groups(range(5))] * layers)
    assert read_bytes(tmp_path / "merged") == read_bytes(tmp_path / "pruned")


@pytest.mark.parametrize("family", PASSING)
def test_merging_is_the_weighted_mean_of_experts_and_the_mean_of_router_rows(tiny, tmp_path, family):
    model = tiny(family)
    weights = {0: (1.0,), 1: (0.25, 0.75), 2: (0.5, 0.3, 0.2), 3: (1.0,)}
    members = {0: (0,), 1: (1, 5), 2: (2, 7, 4), 3: (6,)}
    groups = tuple(ExpertGroup(members[new], weights[new]) for new in members)
    rewrite(model.folder, tmp_path / "new", [groups] * len(model.moe_layers))
    loaded = load(family, tmp_path / "new").state_dict()
    for name, tensor in model.state.items():
        if name not in model.expert_axes:
            assert torch.equal(loaded[name], tensor), name
            continue
        _, axis = model.expert_axes[name]
        blocks = tensor.movedim(axis, 0)
        each = len(blocks) // NUM_EXPERTS
        is_router = ".experts." not in name or name.endswith("correction_bias")
        expected = [
            sum(
                (1 / len(members[n]) if is_router else w) * blocks[m * each : (m + 1) * each]
                for m, w in zip(members[n], weights[n], strict=True)
            )
            for n in members
        ]
        expected.append(blocks[NUM_EXPERTS * each :])
        torch.testing.assert_close(loaded[name].movedim(axis, 0), torch.cat(expected), msg=name)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_cannot_be_cut_is_refused_by_name(tiny, family):
    index = read_index(tiny(family).folder)
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        derive_tensor_map(index.config, index.shapes)
