"""How one quantised weight is stored: the shape it stands for, and which block of it shares a scale."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.types import Encoding

Shapes = Mapping[str, tuple[int, ...]]

MXFP4_GROUP = 32
ALTERNATIVES = "give the checkpoint in BF16, FP8, MXFP4 or compressed-tensors"
_BYTES_PER_GROUP = 16
_PACKED_PER_COLUMN_BYTE = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")


def plain_shape(weight: str, codes: str, shape: tuple[int, ...], settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape a weight would have unquantised, from that of its codes.

    Raises:
        UnsupportedModelError: if they do not have the axes that codes have.
    """
    if len(shape) < (3 if codes == f"{weight}_blocks" else 1):
        raise UnsupportedModelError(f"'{codes}' of shape {list(shape)} holds no codes; fetch the checkpoint again")
    if codes == f"{weight}_blocks":  # transformers keeps the matrices of these families transposed
        *experts, rows, groups, _ = shape
        return (*experts, groups * MXFP4_GROUP, rows)
    if codes != weight:
        return (*shape[:-1], shape[-1] * _count_packed(settings))
    if settings.get("expert_dtype") == "fp4" and ".experts." in weight:
        return (*shape[:-1], shape[-1] * 2)
    return shape


def _count_packed(settings: Mapping[str, Any]) -> int:
    """Return how many weights one stored number packs.

    Raises:
        UnsupportedModelError: if the config does not say so once for all.
    """
    counts = set()
    for packing, weights in _list_groups(settings):
        bits = weights.get("num_bits")
        if packing in _PACKED_PER_COLUMN_BYTE:
            counts.add(2)
        elif packing == "pack-quantized" and type(bits) is int and 0 < bits < 32 and 32 % bits == 0:
            counts.add(32 // bits)
    if len(counts) != 1:
        raise UnsupportedModelError(
            f"the quantisation packs {sorted(counts) or 'an unknown number of'} weights in one stored number; "
            f"{ALTERNATIVES} with one packing"
        )
    return counts.pop()


def _list_groups(settings: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the format and the description of the weights of each of compressed-tensors' groups."""
    groups = settings.get("config_groups")
    found = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    described = [group for group in found if isinstance(group.get("weights"), dict)]
    return [(group.get("format") or settings.get("format"), group["weights"]) for group in described]


def find_encoding(
    weight: str,
    codes: str,
    scales: str | None,
    shape: tuple[int, ...],
    tensors: Shapes,
    settings: Mapping[str, Any],
) -> Encoding | None:
    """Return how to decode a weight, None if its format is not decoded here.

    Raises:
        UnsupportedModelError: if the scales are not one per block of the weight, or codes have none.
    """
    if scales is None and codes != weight:
        raise UnsupportedModelError(f"'{codes}' has no scales beside it; fetch the checkpoint again")
    if scales is None:
        return None
    if codes == f"{weight}_blocks":
        if tensors[codes] != (*tensors[scales], _BYTES_PER_GROUP):
            raise _misfit(weight, tensors[codes], tensors[scales])
        return Encoding("mxfp4", codes, scales, (MXFP4_GROUP, 1))
    if codes != weight or shape != tensors[codes] or not _is_fp8(settings):
        return None
    grid = _grid_of(shape, tensors[scales])
    for block in _list_blocks(shape, settings) if grid else ():
        if grid == (-(-shape[-2] // block[0]), -(-shape[-1] // block[1])):
            return Encoding("fp8", codes, scales, block)
    raise _misfit(weight, shape, tensors[scales])


def _is_fp8(settings: Mapping[str, Any]) -> bool:
    """Whether weights that are not packed are 8-bit floats: compressed-tensors also has 8-bit integers."""
    kinds = [weights for _, weights in _list_groups(settings) if weights.get("num_bits") == 8]
    return all(weights.get("type") == "float" for weights in kinds)


def _grid_of(weight: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return rows and columns of the scales of one matrix, None if they do not go with the weight."""
    if len(weight) < 2 or not prod(weight):
        return None
    if len(scales) == len(weight) and scales[:-2] == weight[:-2]:
        return scales[-2:]
    if prod(scales) == 1 or scales == weight[:-2]:
        return (1, 1)
    return (scales[0], 1) if len(weight) == 2 and len(scales) == 1 else None


def _list_blocks(shape: tuple[int, ...], settings: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the blocks that may share a scale: those the config names, then a whole matrix, then a row."""
    named = [settings.get("weight_block_size")]
    for _, weights in _list_groups(settings):
        named += [weights.get("block_structure"), [1, weights.get("group_size")]]
    if settings.get("quant_method") == "mxfp8":
        named.append([1, MXFP4_GROUP])
    for block in named:
        if isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block):
            yield block[0], block[1]
    yield shape[-2], shape[-1]
    yield 1, shape[-1]


def _misfit(weight: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{weight}' {list(shape)} has scales of shape {list(scales)}, which are not one for each of its blocks; "
        "fetch the checkpoint again"
    )
