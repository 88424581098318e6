"""The contract of every family, with transformers as the oracle: the files written are the model cut in memory."""

import json
import re

import pytest
import torch
from tests.families.conftest import PASSING, REFUSED, keep_five, prune, read_bytes, rewrite
from tests.tiny_configs import NUM_EXPERTS
from tests.tiny_families import load

from moe_compress.checkpoint.index import read_index
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.config_keys import COUNT_NAMES
from moe_compress.families.derive import derive_tensor_map
from moe_compress.types import ExpertGroup, pruning_groups

# The softmax over all experts comes before the choice: one term fewer in its sum may round differently.
SOFTMAX_FIRST = {}


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
    in_memory, loaded = model.sliced(kept), load(family, tmp_path / "new")
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(loaded(tokens).logits, in_memory(tokens).logits)
    assert sum(file.stat().st_size for file in (tmp_path / "new").glob("*.safetensors")) == planned.num_bytes


def never_choose(model, dropped, tokens):
    """Make the router of each layer score some experts so low that no token gets them.

    `dropped` is layer -> experts. Layer by layer in one forward, the routers' rows of these experts become
    the vector whose product with every token's hidden state is -1000.
    """
    hooks = []

    def write_rows(experts):
        def hook(module, inputs):
            hidden_TH = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            row_H = torch.linalg.pinv(hidden_TH) @ torch.full((len(hidden_TH),), -1000.0).double()
            module.weight[experts] = row_H.to(module.weight.dtype)

        return hook

    for name, (layer, axis) in model.expert_axes.items():
        owner, _, last = name.rpartition(".")
        tensor = model.state[name]
        if tensor.squeeze().dim() == 1 and "bias" in last:
            tensor.index_fill_(axis, torch.tensor(dropped[layer]), -10.0)
        elif last == "weight" and ".experts." not in name:
            module = model.model.get_submodule(owner)
            hooks.append(module.register_forward_pre_hook(write_rows(dropped[layer])))
    assert len(hooks) == len(dropped)
    model.model(tokens)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", PASSING)
@torch.no_grad()
def test_dropping_experts_never_chosen_changes_nothing(tiny, tokens, tmp_path, family):
    few = tokens[:1, :3]
    source = tiny(family)
    model = type(source)(family, load(family, source.folder), tmp_path / "old")
    kept = keep_five(source)
    dropped = {layer: [e for e in range(NUM_EXPERTS) if e not in experts] for layer, experts in kept.items()}
    never_choose(model, dropped, few)
    model.model.save_pretrained(model.folder)
    prune(model.folder, tmp_path / "new", kept)
    expected, got = load(family, model.folder)(few).logits, load(family, tmp_path / "new")(few).logits
    print(family, "EQUAL" if torch.equal(expected, got) else float((expected-got).abs().max()))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    others = {layer: [0, *experts[:4]] if 0 not in experts else experts for layer, experts in dropped.items()}
    assert others
    assert not torch.equal(source.model(few).logits, expected)


@pytest.mark.parametrize("family", PASSING)
def test_keeping_all_is_the_identity(tiny, tmp_path, family):
    model = tiny(family)
    prune(model.folder, tmp_path / "new", {layer: range(NUM_EXPERTS) for layer in model.moe_layers})
    assert read_bytes(tmp_path / "new") == read_bytes(model.folder)


@pytest.mark.parametrize("family", PASSING)
def test_only_the_count_changes_in_the_config(tiny, tmp_path, family):
    model = tiny(family)
    prune(model.folder, tmp_path / "new", keep_five(model))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model.folder, tmp_path / "new"))
    assert _replace_counts(before, 5) == _replace_counts(after, 5)
    assert before != after


def _replace_counts(config, value):
    """Return a config with every number of experts of the language model set to one value."""
    changed = {key: _replace_counts(part, value) if isinstance(part, dict) else part for key, part in config.items()}
    return changed | {key: value for key in COUNT_NAMES if config.get(key) in (NUM_EXPERTS, value)}


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
