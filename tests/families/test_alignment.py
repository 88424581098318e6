"""Aligning neurons before averaging, family by family: twins in another order become one expert again."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from tests.families.conftest import PASSING, read_bytes
from tests.families.quantised_checkpoints import make_model, quantise_mxfp4, write_config
from tests.families.quantised_checkpoints import save as write_quantised
from tests.tiny_configs import NUM_EXPERTS
from tests.tiny_families import load

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.families.derive import derive_tensor_map
from moe_compress.types import CompressionPlan, ExpertGroup, pruning_groups

FIRST, SECOND = 2, 5


def find_axis(first, down, is_down):
    """Return the neuron axis of an expert's matrix: those of linear layers, or both transposed."""
    is_linear = first[1] == down[0] and first[0] in (down[1], 2 * down[1])
    assert is_linear or (first[0] == down[1] and first[1] in (down[0], 2 * down[0]))
    return int(is_down == is_linear)


def shuffled(source, layer, expert):
    """Return in-memory tensor -> one expert's part with its neurons in another order, told by in-memory shapes."""
    parts = {}
    for name, (own, axis) in source.expert_axes.items():
        last = name.rpartition(".")[2]
        if own == layer and (".experts." in name and "correction" not in last):
            tensor = source.state[name].movedim(axis, 0)
            parts[name] = tensor[source.rows_of(len(tensor), [expert])[: len(tensor) // NUM_EXPERTS]]
            parts[name] = parts[name].squeeze(0) if len(parts[name]) == 1 else parts[name]
    matrices = {name.rpartition(".")[2]: part.shape for name, part in parts.items() if part.dim() == 2}
    order = None
    for name, part in parts.items():
        last = name.rpartition(".")[2]
        is_down = last.startswith(("down", "w2"))
        if source.family == "dbrx":
            axis, count = 0, len(part)
        else:
            first, down = next(s for n, s in matrices.items() if not n.startswith("down")), matrices["down_proj"]
            axis = find_axis(first, down, is_down) if part.dim() == 2 else 0
            count = down[find_axis(first, down, True)]
        if order is None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(expert))
        if part.dim() == 1 and is_down:
            continue
        entries = order
        if part.shape[axis] == 2 * count:
            pairs = torch.stack([2 * order, 2 * order + 1], 1).flatten()
            entries = pairs if source.family == "gpt_oss" else torch.cat([order, order + count])
        assert part.shape[axis] == len(entries), name
        parts[name] = part.index_select(axis, entries)
    return parts


def put(source, values, parts, expert):
    for name, part in parts.items():
        axis = source.expert_axes[name][1]
        place = values[name].movedim(axis, 0)
        rows = source.rows_of(len(place), [expert])[: len(place) // NUM_EXPERTS]
        place[rows] = part if len(rows) > 1 else part.unsqueeze(0)


def load_all(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def rewrite(source, destination, groups, align=False, **options):
    index = read_index(source)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    plan = CompressionPlan(
        tensor_map.layout, (groups,) * len(tensor_map.layout.layers), "test", align_neurons=align
    )
    write_checkpoint(plan_rewrite(index, tensor_map, plan, max_shard_bytes=30_000, **options), destination)


@pytest.mark.parametrize("family", PASSING)
def test_twins_in_another_order_become_one_again(tiny, tmp_path, tokens, family):
    source = tiny(family)
    twins = load(family, source.folder)
    values = twins.state_dict()
    parts = {layer: shuffled(source, layer, FIRST) for layer in source.moe_layers}
    for layer in source.moe_layers:
        put(source, values, parts[layer], FIRST)
    # The order of neurons does not matter to the model: what was shuffled are neurons.
    assert torch.allclose(twins(tokens).logits, source.model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(values[name], source.state[name]) for name in parts[source.moe_layers[0]])

    twins.load_state_dict(source.state)
    for name, (_, axis) in source.expert_axes.items():
        size = values[name].shape[axis]
        two, five = (torch.tensor(source.rows_of(size, [e]))[: size // NUM_EXPERTS] for e in (FIRST, SECOND))
        values[name].index_copy_(axis, five, values[name].index_select(axis, two))
    for layer in source.moe_layers:
        put(source, values, parts[layer], SECOND)
    twins.save_pretrained(tmp_path / "twins")
    merged = (*pruning_groups([0, 1]), ExpertGroup((FIRST, SECOND), (0.5, 0.5)), *pruning_groups([3, 4]))
    rewrite(tmp_path / "twins", tmp_path / "merged", merged, align=True)
    rewrite(tmp_path / "twins", tmp_path / "averaged", merged)
    rewrite(tmp_path / "twins", tmp_path / "pruned", pruning_groups(range(5)))
    assert read_bytes(tmp_path / "merged") == read_bytes(tmp_path / "pruned")
    assert read_bytes(tmp_path / "averaged") != read_bytes(tmp_path / "pruned")


def test_quantised_experts_are_decoded_then_aligned_then_averaged(tmp_path):
    model = make_model("gpt_oss", hidden_size=64, intermediate_size=96, num_hidden_layers=3)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = quantise_mxfp4(tensor)
        else:
            tensors[name] = tensor.bfloat16()
    folder = write_quantised(
        tmp_path / "old", write_config(model, quantization_config={"quant_method": "mxfp4"}), tensors
    )
    pair = (ExpertGroup((0, 1), (0.25, 0.75)), *pruning_groups([2, 3]))
    rewrite(folder, tmp_path / "plain", pruning_groups(range(NUM_EXPERTS)), weights="bfloat16")
    rewrite(folder, tmp_path / "new", pair, align=True, weights="bfloat16")
    old, new = (load_all(tmp_path / name) for name in ("plain", "new"))
    parts = {name: tensor.float() for name, tensor in old.items() if ".experts." in name}

    def by_neuron(expert):
        up, down = parts["model.layers.0.mlp.experts.gate_up_proj"], parts["model.layers.0.mlp.experts.down_proj"]
        bias = parts["model.layers.0.mlp.experts.gate_up_proj_bias"]
        pairs = [up[expert].T.reshape(96, -1), bias[expert].reshape(96, 2), down[expert]]
        return torch.cat(pairs, dim=1).numpy()

    order = linear_sum_assignment(by_neuron(1) @ by_neuron(0).T, maximize=True)[1]
    assert list(order) != list(range(96))
    name = "model.layers.0.mlp.experts.down_proj"
    assert torch.equal(new[name][0], (0.25 * parts[name][0][order] + 0.75 * parts[name][1]).bfloat16())
    name = "model.layers.0.mlp.experts.gate_up_proj_bias"
    entries = [entry for neuron in order for entry in (2 * neuron, 2 * neuron + 1)]
    assert torch.equal(new[name][0], (0.25 * parts[name][0][entries] + 0.75 * parts[name][1]).bfloat16())
