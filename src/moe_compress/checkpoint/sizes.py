"""What each expert of a checkpoint, and everything else, will take once written: from names and shapes alone."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from moe_compress.checkpoint.index import CheckpointIndex
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.types import CompressionPlan, ModelSize, SizeUnit, TensorMap, pruning_groups


def weigh(index: CheckpointIndex, tensor_map: TensorMap, unit: SizeUnit, **options: Any) -> ModelSize:
    """Return the sizes of a checkpoint that is written with all its experts.

    Router rows, correction biases, scales and layers for multi-token prediction count as their expert's. Files'
    headers count to the rest as they are with all experts, so that fewer never take more than these sizes say.

    Args:
        index: the source checkpoint.
        tensor_map: what each of its tensors is.
        unit: `bytes`, or `parameters` for the numbers its tensors hold.
        options: those of `plan_rewrite` that it will be written with.

    Raises:
        PlanError: if it cannot be written so.
        CheckpointError: if a tensor's shape contradicts its role.
    """
    layout = tensor_map.layout
    everything = tuple(pruning_groups(range(count)) for count in layout.num_experts)
    rewrite = plan_rewrite(index, tensor_map, CompressionPlan(layout, everything, "all"), **options)
    roles = {weight: tensor_map.roles[part] for part, weight in tensor_map.parts.items()} | dict(tensor_map.roles)
    slices: Counter[int | None] = Counter()
    numbered: Counter[tuple[int | None, int | None]] = Counter()
    for shard in rewrite.shards:
        for job in shard.jobs:
            role, size = roles[job.name], job.num_bytes if unit == "bytes" else prod(job.shape)
            if role.kind == "expert_axis":
                slices[role.layer] += size * role.rows_per_expert // job.shape[role.axis]
            elif role.kind == "expert":
                numbered[role.layer, role.expert] += size
    total = rewrite.num_bytes if unit == "bytes" else sum(map(prod, rewrite.shapes.values()))
    experts, owned = [], 0
    for layer, count in zip(layout.layers, layout.num_experts, strict=True):
        own = [numbered[layer, expert] for expert in range(count)]
        experts.append(slices[layer] + max(own))  # which ones stay is not known yet
        owned += count * slices[layer] + sum(own)
    return ModelSize(tuple(experts), total - owned, unit)
