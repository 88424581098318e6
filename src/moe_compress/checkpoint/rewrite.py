"""Plan a smaller checkpoint from names alone: which source bytes make up each new tensor, and its config."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from math import isfinite, prod
from typing import Any, Literal
from zlib import crc32

from moe_compress.checkpoint.alignment import align_jobs
from moe_compress.checkpoint.arithmetic import AVERAGED_DTYPES
from moe_compress.checkpoint.decoding import check_quantised, check_scales, plan_decoded
from moe_compress.checkpoint.header import DTYPE_BITS
from moe_compress.checkpoint.index import CheckpointIndex
from moe_compress.checkpoint.jobs import (
    ByteRange,
    CheckpointRewrite,
    Mean,
    Piece,
    ShardPlan,
    TensorJob,
    name_shard,
)
from moe_compress.errors import CheckpointError, PlanError
from moe_compress.families.config_keys import with_layer_values, with_value
from moe_compress.families.module_lists import update_module_lists
from moe_compress.families.quantised import without_settings
from moe_compress.types import (
    CompressionPlan,
    ExpertGroup,
    MoELayout,
    RouterNoise,
    TensorInfo,
    TensorMap,
    TensorRole,
    iterate_layers,
)

_Groups = tuple[ExpertGroup, ...]

_QUANTISATION_FILES = frozenset({"hf_quant_config.json"})
"""Where some quantisers say once more, beside `config.json`, how weights are quantised."""


def plan_rewrite(
    index: CheckpointIndex,
    tensor_map: TensorMap,
    plan: CompressionPlan,
    *,
    layout: Literal["uniform", "per_layer"] = "uniform",
    max_shard_bytes: int = 5_000_000_000,
    weights: Literal["keep", "bfloat16"] = "keep",
    mtp: Literal["prune", "drop"] = "prune",
) -> CheckpointRewrite:
    """Return what to write so that the checkpoint has the plan's experts; reads and writes nothing.

    Args:
        index: the source checkpoint.
        tensor_map: what each of its tensors is.
        plan: which old experts make up each new one; single members are copied, several averaged in float32.
        layout: `uniform` refuses layers with different numbers of experts; `per_layer` writes them, for
            `moe_compress.load_model`.
        max_shard_bytes: tensor bytes per file; one tensor larger than this gets a file of its own.
        weights: `keep` the bytes of quantised weights, or write each of them decoded as BF16, which merging them
            needs; what is not quantised, such as float32 correction biases, stays as it is either way.
        mtp: `prune` layers for multi-token prediction like the last MoE layer, or `drop` them.

    Raises:
        PlanError: if plan and checkpoint do not belong together, or an engine would misread the outcome.
        CheckpointError: if a tensor's shape contradicts its role.
    """
    check_plan(tensor_map, plan, set(index.tensors), layout, weights, mtp)
    check_scales(index, tensor_map)
    groups = dict(iterate_layers(plan))
    decoded = tensor_map.parts if weights == "bfloat16" else {}
    dropped = tensor_map.mtp_tensors if mtp == "drop" else frozenset()
    jobs: list[TensorJob] = []
    for name, info in index.tensors.items():
        if name not in dropped:
            if name in decoded:
                jobs.extend(plan_decoded(info, index, tensor_map, groups))
            else:
                jobs.extend(_plan_tensor(info, index, tensor_map, groups, plan.router_noise))
    if plan.align_neurons:
        jobs = align_jobs(jobs, tensor_map, _find_hidden_size(index, tensor_map))
    config = _new_config(index.config, tensor_map, plan.new_layout)
    config = with_value(config, tensor_map.mtp_keys if mtp == "drop" else (), 0)
    config = without_settings(config) if decoded else update_module_lists(config, tensor_map, groups, dropped)
    shards = _plan_shards(jobs, max_shard_bytes)
    left_behind = _QUANTISATION_FILES if decoded else frozenset()
    return CheckpointRewrite(index.folder, config, shards, plan.digest, index.stamps, left_behind)


def _find_hidden_size(index: CheckpointIndex, tensor_map: TensorMap) -> int:
    """Return the length of what routers read, 0 if no router is a plain matrix."""
    shapes = (index.tensors[name].shape for name, role in tensor_map.roles.items() if role.is_router)
    return next((shape[1] for shape in shapes if len(shape) == 2), 0)


def _new_config(config: Mapping[str, Any], tensor_map: TensorMap, layout: MoELayout) -> dict[str, Any]:
    """Return the config with every alias of the number of experts, and of groups where they are given up.

    Where layers differ the count is the largest, which no stock loader can fill, and the others are told layer by
    layer.
    """
    largest = max(layout.num_experts)
    changed = with_value(config, tensor_map.count_keys, largest)
    if layout.num_groups != tensor_map.layout.num_groups:
        changed = with_value(changed, tensor_map.group_keys, layout.num_groups)
    smaller = {
        layer: count for layer, count in zip(layout.layers, layout.num_experts, strict=True) if count < largest
    }
    part = tensor_map.count_keys[0].rpartition(".")[0]  # the language model's; what stands elsewhere is a copy
    own = [key for key in tensor_map.count_keys if key.rpartition(".")[0] == part]
    return with_layer_values(changed, own, smaller) if smaller else changed


def check_plan(
    tensor_map: TensorMap,
    plan: CompressionPlan,
    names: set[str],
    layout: Literal["uniform", "per_layer"],
    weights: Literal["keep", "bfloat16"],
    mtp: Literal["prune", "drop"],
) -> None:
    """Check what must hold before a byte is written.

    Args:
        tensor_map: what each tensor is.
        plan: which old experts make up each new one.
        names: the checkpoint's tensors.
        layout: see `plan_rewrite`, as `weights` and `mtp`.
        weights: what becomes of quantised weights.
        mtp: what becomes of layers for multi-token prediction.

    Raises:
        PlanError: naming the first thing that does not.
    """
    if plan.layout != tensor_map.layout:
        raise PlanError(
            f"the plan is for {plan.layout.described}, the checkpoint has {tensor_map.layout.described}; "
            "plan for this checkpoint"
        )
    if unknown := names ^ set(tensor_map.roles):
        raise PlanError(
            f"the tensor map and the checkpoint differ in {len(unknown)} tensors, first '{min(unknown)}'; "
            "derive the map from this checkpoint"
        )
    if layout == "uniform" and not plan.new_layout.is_uniform:
        counts = plan.new_layout.num_experts
        raise PlanError(
            f"layers would keep between {min(counts)} and {max(counts)} experts, and stock engines read one number "
            "for all of them; plan the same number for every layer (select.budget.scope: per_layer), or write "
            "what moe_compress.load_model alone can load (rewrite.layout: per_layer)"
        )
    if plan.new_layout.num_groups != plan.layout.num_groups and not tensor_map.group_keys:
        raise PlanError(
            f"the plan gives up the router's {plan.layout.num_groups} groups, but where config.json tells them is "
            "not known for this family; keep them (select.groups: balanced)"
        )
    for layer, groups in iterate_layers(plan):
        _check_weights(layer, groups)
    merging = {layer for layer, groups in iterate_layers(plan) if any(len(group.members) > 1 for group in groups)}
    is_smaller, is_uniform = plan.new_layout != plan.layout, plan.new_layout.is_uniform
    check_writable(tensor_map, merging, weights, mtp, is_smaller=is_smaller, is_uniform=is_uniform)


def check_writable(
    tensor_map: TensorMap,
    merging: Collection[int],
    weights: Literal["keep", "bfloat16"],
    mtp: Literal["prune", "drop"],
    *,
    is_smaller: bool,
    is_uniform: bool,
) -> None:
    """Check what a checkpoint allows of a plan, of which no more need be known than its kind.

    Args:
        tensor_map: what each tensor is.
        merging: decoder layers in which the plan merges experts.
        weights: see `plan_rewrite`, as `mtp`.
        mtp: what becomes of layers for multi-token prediction.
        is_smaller: whether experts go.
        is_uniform: whether layers then have the same number of experts.

    Raises:
        PlanError: naming the first thing that it does not allow.
    """
    check_quantised(tensor_map, merging, is_decoded=weights == "bfloat16")
    if tensor_map.uneven_problem and not is_uniform:
        raise PlanError(
            f"layers cannot keep different numbers of experts ({tensor_map.uneven_problem}); give each the same "
            "number (select.budget.scope: per_layer)"
        )
    if tensor_map.mtp_problem and mtp == "prune" and is_smaller:
        raise PlanError(
            f"the multi-token-prediction layers cannot be pruned like the last layer ({tensor_map.mtp_problem}), "
            "and engines build them with the model's number of experts; set rewrite.mtp to drop"
        )
    if tensor_map.mtp_tensors and mtp == "prune" and not is_uniform:
        raise PlanError(
            "the multi-token-prediction layers cannot be told their own number of experts when layers differ "
            "(rewrite.layout: per_layer); set rewrite.mtp to drop"
        )


def _check_weights(layer: int, groups: _Groups) -> None:
    for new, group in enumerate(groups):
        total = sum(group.weights)
        if not isfinite(total) or abs(total - 1) > 1e-6:
            raise PlanError(
                f"layer {layer} averages experts {list(group.members)[:4]} into expert {new} with weights "
                f"that sum to {total:g}, which would rescale its output; make them sum to 1"
            )


def _plan_tensor(
    info: TensorInfo,
    index: CheckpointIndex,
    tensor_map: TensorMap,
    groups: Mapping[int, _Groups],
    noise: RouterNoise | None,
) -> Iterator[TensorJob]:
    """Yield what becomes of one source tensor: itself, an expert under its new number, rows, or nothing."""
    role = tensor_map.roles[info.name]
    if role.kind == "untouched":
        yield TensorJob(info.name, info.dtype, info.shape, (_whole(info),))
        return
    assert role.layer is not None
    if role.kind == "expert_axis":
        yield _plan_axis(info, role, groups[role.layer], noise)
        return
    for new, group in enumerate(groups[role.layer]):
        if group.members[0] == role.expert:
            members = [index.tensors[tensor_map.rename(info.name, member)] for member in group.members]
            if odd := next((m for m in members if (m.dtype, m.shape) != (info.dtype, info.shape)), None):
                raise PlanError(
                    f"'{info.name}' ({info.dtype} {list(info.shape)}) would be averaged with '{odd.name}' "
                    f"({odd.dtype} {list(odd.shape)}), which is stored differently; use a method that prunes"
                )
            piece = _combine(info, tuple(map(_whole, members)), group.weights)
            yield TensorJob(tensor_map.rename(info.name, new), info.dtype, info.shape, (piece,))


def _plan_axis(info: TensorInfo, role: TensorRole, groups: _Groups, noise: RouterNoise | None) -> TensorJob:
    """Return the job of a tensor with one slice per expert along an axis."""
    outer = prod(info.shape[: role.axis])
    # of a shape that has no such axis, or nothing along one, no slice can be taken
    along = info.shape[role.axis] if role.axis < len(info.shape) else 0
    experts, rest = divmod(max(along - role.num_others, 0), role.rows_per_expert)
    row_bytes, split = divmod(info.num_bytes, max(outer * along, 1))
    slice_bytes, block_bytes = row_bytes * role.rows_per_expert, row_bytes * along
    last = max(member for group in groups for member in group.members)
    if rest or split or last >= experts:
        raise CheckpointError(
            f"tensor '{info.name}' of shape {list(info.shape)} does not hold {role.rows_per_expert} rows for "
            f"each expert up to {last} along axis {role.axis}; its role is not understood"
        )
    pieces: list[Piece] = []
    for block in range(outer):
        first = info.start + block * block_bytes
        for group in groups:
            starts = [first + member * slice_bytes for member in group.members]
            ranges = tuple(ByteRange(info.file, start, slice_bytes) for start in starts)
            # A merged expert is picked by the plain mean of its members' router rows, whatever their weights.
            weights = (1 / len(ranges),) * len(ranges) if role.is_router else group.weights
            piece = _combine(info, ranges, weights)
            if role.is_router and noise is not None and isinstance(piece, Mean):
                seed = (noise.seed, crc32(info.name.encode()), len(pieces))
                piece = replace(piece, epsilon=noise.epsilon, seed=seed)
            pieces.append(piece)
        if role.num_others:
            pieces.append(ByteRange(info.file, first + experts * slice_bytes, role.num_others * row_bytes))
    length = len(groups) * role.rows_per_expert + role.num_others
    shape = (*info.shape[: role.axis], length, *info.shape[role.axis + 1 :])
    return TensorJob(info.name, info.dtype, shape, tuple(pieces))


def _combine(info: TensorInfo, ranges: tuple[ByteRange, ...], weights: tuple[float, ...]) -> ByteRange | Mean:
    """Return one range as it is, several as their average."""
    if len(ranges) == 1:
        return ranges[0]
    if info.dtype not in AVERAGED_DTYPES:
        raise PlanError(
            f"tensor '{info.name}' is stored as {info.dtype}, and only {', '.join(AVERAGED_DTYPES)} can be "
            "averaged; use a method that prunes, or a checkpoint in one of these"
        )
    return Mean(ranges, weights)


def _whole(info: TensorInfo) -> ByteRange:
    return ByteRange(info.file, info.start, info.num_bytes)


def _plan_shards(jobs: list[TensorJob], max_shard_bytes: int) -> tuple[ShardPlan, ...]:
    """Fill files with tensors in source order; in a file, wide dtypes first, which keeps each one aligned."""
    files: list[list[TensorJob]] = [[]]
    filled = 0
    for job in jobs:
        if files[-1] and filled + job.num_bytes > max_shard_bytes:
            files.append([])
            filled = 0
        files[-1].append(job)
        filled += job.num_bytes
    return tuple(
        ShardPlan(name_shard(number, len(files)), tuple(sorted(file, key=lambda job: -DTYPE_BITS[job.dtype])))
        for number, file in enumerate(files, start=1)
    )
