"""Plan a quantised weight's place in a checkpoint written as BF16: which codes, decoded, make up the new tensor."""

from collections.abc import Collection, Iterator, Mapping
from math import prod

from moe_compress.checkpoint.dequantise import CODE_DTYPES, SCALE_DTYPES, MatrixCode
from moe_compress.checkpoint.index import CheckpointIndex
from moe_compress.checkpoint.jobs import ByteRange, CodedMatrix, Decoded, TensorJob
from moe_compress.errors import CheckpointError, PlanError
from moe_compress.families.encodings import MXFP4_GROUP
from moe_compress.types import ExpertGroup, TensorInfo, TensorMap, TensorRole

_Groups = tuple[ExpertGroup, ...]
_WRITTEN = "BF16"


def check_quantised(tensor_map: TensorMap, merging: Collection[int], is_decoded: bool) -> None:
    """Check that a plan can be carried out on quantised weights.

    Args:
        tensor_map: what each tensor of the checkpoint is.
        merging: decoder layers in which the plan merges experts.
        is_decoded: whether quantised weights are written decoded.

    Raises:
        PlanError: if it merges experts that stay quantised, or decodes what is not understood.
    """
    if is_decoded:
        if opaque := set(tensor_map.parts.values()) - set(tensor_map.encodings):
            raise PlanError(
                f"{len(opaque)} weights are stored in a format that is not decoded here, first '{min(opaque)}'; "
                "set rewrite.weights to keep and use a method that prunes, or take an unquantised checkpoint"
            )
        return
    if name := next((name for name in tensor_map.parts if tensor_map.roles[name].layer in merging), None):
        raise PlanError(
            f"the plan merges experts, and theirs are quantised ('{name}'): a mean of codes means nothing; set "
            "rewrite.weights to bfloat16, which writes the whole model decoded, or use a method that prunes"
        )


def check_scales(index: CheckpointIndex, tensor_map: TensorMap) -> None:
    """Check that no quantised weight lacks its scales; without them its codes say nothing.

    Raises:
        CheckpointError: naming the first that does.
    """
    if not tensor_map.parts:
        return
    for name, info in index.tensors.items():
        if info.dtype in CODE_DTYPES["fp8"] and name not in tensor_map.parts:
            raise CheckpointError(
                f"'{name}' in {info.file} is stored as {info.dtype} without scales, which other weights of this "
                "checkpoint have; fetch the checkpoint again"
            )


def plan_decoded(
    info: TensorInfo, index: CheckpointIndex, tensor_map: TensorMap, groups: Mapping[int, _Groups]
) -> Iterator[TensorJob]:
    """Yield what becomes of one part of a quantised weight: the weight in BF16 for its codes, nothing for others.

    Args:
        info: the part.
        index: the source checkpoint.
        tensor_map: what each of its tensors is.
        groups: layer -> which old experts make up each new one.

    Raises:
        CheckpointError: if codes and scales do not have the sizes and dtypes that their encoding says.
        PlanError: if an expert is merged with one that is not quantised.
    """
    weight = tensor_map.parts[info.name]
    if tensor_map.encodings[weight].codes != info.name:
        return
    role = tensor_map.roles[info.name]
    if role.kind == "expert":
        assert role.layer is not None
        for new, group in enumerate(groups[role.layer]):
            if group.members[0] == role.expert:
                names = [tensor_map.rename(weight, member) for member in group.members]
                members = [_split_matrices(name, index, tensor_map, role) for name in names]
                pieces = tuple(Decoded(matrices, group.weights) for matrices in zip(*members, strict=True))
                yield TensorJob(tensor_map.rename(weight, new), _WRITTEN, _shape_of(info, weight), pieces)
        return
    matrices = _split_matrices(weight, index, tensor_map, role)
    shape = _shape_of(info, weight)
    if role.kind == "untouched":
        yield TensorJob(weight, _WRITTEN, shape, tuple(Decoded((matrix,), (1.0,)) for matrix in matrices))
        return
    assert role.layer is not None
    merged = groups[role.layer]
    pieces = tuple(Decoded(tuple(matrices[m] for m in group.members), group.weights) for group in merged)
    yield TensorJob(weight, _WRITTEN, (len(merged) * role.rows_per_expert, *shape[1:]), pieces)


def _shape_of(codes: TensorInfo, weight: str) -> tuple[int, ...]:
    """Return the shape of the decoded weight; MXFP4 matrices become the transposed."""
    if codes.name == weight:
        return codes.shape
    *experts, rows, groups, _ = codes.shape
    return (*experts, groups * MXFP4_GROUP, rows)


def _split_matrices(
    weight: str, index: CheckpointIndex, tensor_map: TensorMap, role: TensorRole
) -> list[CodedMatrix]:
    """Return the matrices a quantised weight is made of: one per expert if it holds several.

    Raises:
        CheckpointError: if its tensors are not what its encoding says.
        PlanError: if it is not quantised.
    """
    if weight not in tensor_map.encodings:
        raise PlanError(
            f"'{weight}' is not quantised and would be merged with a weight that is; use a method that prunes"
        )
    encoding = tensor_map.encodings[weight]
    codes, scales = index.tensors[encoding.codes], index.tensors[encoding.scales]
    shape = _shape_of(codes, weight)
    if role.kind == "expert_axis" and role.rows_per_expert > 1:
        shape = (shape[0] // role.rows_per_expert, role.rows_per_expert, *shape[1:])
    count, (rows, columns) = prod(shape[:-2]), shape[-2:]
    code = MatrixCode(encoding.kind, codes.dtype, scales.dtype, (rows, columns), encoding.block)
    shares = 1 if prod(scales.shape) == prod(code.grid) else count  # one set of scales may serve all
    if (
        codes.dtype not in CODE_DTYPES[encoding.kind]
        or scales.dtype not in SCALE_DTYPES
        or codes.num_bytes != count * code.num_code_bytes
        or prod(scales.shape) != shares * prod(code.grid)
    ):
        raise CheckpointError(
            f"'{weight}' is stored as {codes.dtype} {list(codes.shape)} with {scales.dtype} scales "
            f"{list(scales.shape)}, which is no {encoding.kind} of blocks {list(encoding.block)}; fetch it again"
        )
    return [
        CodedMatrix(code, _share(codes, number, count), _share(scales, number % shares, shares))
        for number in range(count)
    ]


def _share(info: TensorInfo, number: int, count: int) -> ByteRange:
    """Return the bytes of one of `count` equal parts of a tensor."""
    size = info.num_bytes // count
    return ByteRange(info.file, info.start + number * size, size)
