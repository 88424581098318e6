"""A small checkpoint made of numbers one can follow by hand, and the map and plans that go with it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from moe_compress.types import CompressionPlan, MoELayout, TensorMap, TensorRole, pruning_groups

NUM_EXPERTS = 4
LAYERS = (1, 3)


def make_tensors():
    """Return two MoE layers of four experts; expert e of layer l holds the value 10 l + e everywhere."""
    tensors = {"embed.weight": np.arange(12, dtype=np.float32).reshape(3, 4)}
    for layer in LAYERS:
        values = 10 * layer + np.arange(NUM_EXPERTS, dtype=np.float32)
        tensors[f"layers.{layer}.norm.weight"] = np.full(3, layer, dtype=np.float16)
        for expert in range(NUM_EXPERTS):
            tensors[f"layers.{layer}.experts.{expert}.up.weight"] = np.full(
                (2, 3), values[expert], dtype=np.float32
            )
        tensors[f"layers.{layer}.gate.weight"] = np.repeat(values[:, None], 3, axis=1)
        tensors[f"layers.{layer}.gate.bias"] = values[None, :].astype(np.float16)  # [1, E]
        tensors[f"layers.{layer}.fused"] = np.repeat(values, 2 * 5).reshape(2 * NUM_EXPERTS, 5)  # 2 rows each
    return tensors


def make_map(layout=None):
    roles, spans = {}, {}
    for name in make_tensors():
        parts = name.split(".")
        layer = int(parts[1]) if parts[0] == "layers" else None
        if "experts" in parts:
            start = name.index("experts.") + len("experts.")
            roles[name], spans[name] = TensorRole("expert", layer, int(parts[3])), (start, start + 1)
        elif name.endswith("gate.weight"):
            roles[name] = TensorRole("expert_axis", layer, is_router=True)
        elif name.endswith("gate.bias"):
            roles[name] = TensorRole("expert_axis", layer, axis=1, is_router=True)
        elif name.endswith("fused"):
            roles[name] = TensorRole("expert_axis", layer, rows_per_expert=2)
        else:
            roles[name] = TensorRole("untouched")
    return TensorMap(layout or make_layout(), roles, ("num_experts", "text.count"), spans)


def make_layout(**changes):
    return MoELayout(LAYERS, (NUM_EXPERTS, NUM_EXPERTS), **({"top_k": 1} | changes))


def make_plan(*groups, layout=None):
    """Return a plan with the same groups in every layer; integers are pruning groups of one."""
    made = tuple(group if not isinstance(group, int) else pruning_groups([group])[0] for group in groups)
    layout = layout or make_layout()
    return CompressionPlan(layout, (made,) * len(layout.layers), "test")


def save(folder, shards=2, config=None):
    """Save the tensors in `shards` files with an index, or in one without."""
    folder.mkdir(parents=True)
    config = config or {"num_experts": NUM_EXPERTS, "text": {"count": NUM_EXPERTS, "width": 3}, "name": "näme"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = make_tensors()
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def source(tmp_path):
    """A checkpoint in two files, with a tokenizer, a README and a stray weight file beside it."""
    folder = save(tmp_path / "source")
    for name in (
        "tokenizer.json",
        "generation_config.json",
        "README.md",
        "MLmodel",
        "params.json",
        "pytorch_model.bin",
        ".hidden",
    ):
        (folder / name).write_text(f"content of {name}")
    (folder / "onnx").mkdir()
    return folder
