"""Tiny random models of each family, saved by transformers, and the same pruned in memory by plain slicing.

What is sliced in memory is found by the names and sizes of in-memory tensors alone, not by the code under test.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_families
from tests.tiny_configs import FAMILIES, NUM_EXPERTS

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import CompressionPlan, pruning_groups

REFUSED = {
    "ernie4_5_vl_moe": r"routers of several sets of experts.*layers\.1\.mlp\.text_moe\.gate\.weight",
    "jetmoe": r"routers of several sets of experts.*layers\.0\.mlp\.router\.layer\.weight",
    "longcat_flash": "gate and up matrices for experts that have none",
}
"""Families that cannot be compressed, and what they are told."""

PASSING = sorted(set(FAMILIES) - set(REFUSED))

_OF_EXPERTS = re.compile(r"\.(experts|gate|router|moe_statics)\.|(correction|expert)_bias$")
_NOT_ROUTED = re.compile(r"attn|attention|shared_expert|vis(ion|ual)|audio")
_LAYER = re.compile(r"\.(?:layers|blocks)\.(\d+)\.")
_ROWS_OF_ONE = {"dbrx": 12}  # consecutive rows of a matrix that belong to one expert
_ROWS_BEHIND = {"inkling_text": 1, "inkling_mm_model": 1, "zaya": 1}  # router rows after the experts'


@dataclass(frozen=True)
class Tiny:
    """A tiny model of one family, and the folder transformers saved it in."""

    family: str
    model: torch.nn.Module
    folder: Path

    @property
    def state(self):
        return self.model.state_dict()

    @cached_property
    def expert_axes(self):
        """In-memory tensor -> (layer, axis), for each tensor with one slice per expert."""
        found = {}
        for name, tensor in self.state.items():
            if not _OF_EXPERTS.search(name) or _NOT_ROUTED.search(name):
                continue
            axes = [axis for axis, size in enumerate(tensor.shape) if size in self._sizes]
            if axes:
                (axis,) = axes
                found[name] = (int(_LAYER.search(name)[1]), axis)
        return found

    @property
    def _sizes(self):
        behind, rows = _ROWS_BEHIND.get(self.family), _ROWS_OF_ONE.get(self.family)
        return {NUM_EXPERTS, NUM_EXPERTS + behind if behind else 0, NUM_EXPERTS * rows if rows else 0} - {0}

    @property
    def moe_layers(self):
        return sorted({layer for layer, _ in self.expert_axes.values()})

    def rows_of(self, size, experts):
        """Return which entries of an expert axis of some size belong to experts, or to none and stay."""
        each = size // NUM_EXPERTS
        rows = [expert * each + row for expert in experts for row in range(each)]
        return rows + list(range(NUM_EXPERTS * each, size))

    def sliced(self, kept):
        """Return the model with only some experts, by slicing in memory; `kept` is layer -> old experts."""
        values = self.state
        for name, (layer, axis) in self.expert_axes.items():
            rows = self.rows_of(values[name].shape[axis], kept[layer])
            values[name] = values[name].index_select(axis, torch.tensor(rows))
        model = tiny_families.build(self.family, len(next(iter(kept.values()))))
        model.load_state_dict(values, strict=True)
        return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return family -> tiny model, saved once per session."""

    @cache
    def make(family):
        folder = tmp_path_factory.mktemp(family) / "model"
        tiny_families.save(family, folder)
        return Tiny(family, tiny_families.load(family, folder), folder)

    return make


@pytest.fixture(scope="session")
def tokens():
    return torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(3))


def keep_five(model):
    """Return different experts for each layer, five of the eight."""
    return {layer: sorted((layer + 3 * i) % NUM_EXPERTS for i in range(5)) for layer in model.moe_layers}


def rewrite(source, destination, groups_per_layer):
    """Write a checkpoint with the given groups of experts in each layer, as the pipeline does."""
    index = read_index(source)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    plan = CompressionPlan(tensor_map.layout, tuple(groups_per_layer), "test")
    planned = plan_rewrite(index, tensor_map, plan, max_shard_bytes=30_000)
    verify_checkpoint(planned.config, planned.shapes)
    write_checkpoint(planned, destination)
    return planned


def prune(source, destination, kept):
    """Write a checkpoint with only some experts; `kept` is layer -> old experts."""
    return rewrite(source, destination, [pruning_groups(experts) for experts in kept.values()])


def read_bytes(folder):
    """Return tensor name -> raw bytes, read by the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[name] = tensor.view(torch.uint8).numpy().tobytes()
    return found
