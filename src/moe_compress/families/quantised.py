"""A quantised checkpoint seen as the plain one it stands for, so that everything else need not know of codes.

FP8 (block, channel or tensor scales), compressed-tensors and MXFP4 are understood. A weight then has parts on disk:
codes, scales, and whatever else belongs to it. Formats whose codes are not decoded here (packed integers, FP4) can
still be pruned, because each of their tensors belongs to one weight and moves with it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.types import Encoding, TensorMap, TensorRole

Shapes = Mapping[str, tuple[int, ...]]

MXFP4_GROUP = 32
_BYTES_PER_GROUP = 16
_SETTINGS = ("quantization_config", "compression_config")
_METHODS = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
_ALTERNATIVES = "give the checkpoint in BF16, FP8, MXFP4 or compressed-tensors"
_MODULE_PARTS = {  # the last word of a name -> what it is to `<module>.weight`
    **dict.fromkeys(("weight_scale_inv", "weight_scale", "scale", "qscale_weight"), "scales"),
    "weight_packed": "codes",
    **dict.fromkeys(("weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale"), "other"),
    **dict.fromkeys(("input_scale", "input_zero_point", "input_global_scale"), "other"),
    **dict.fromkeys(("activation_scale", "qscale_act"), "other"),
}
_FUSED_PARTS = {"_blocks": "codes", "_scales": "scales", "_scale_inv": "scales", "_activation_scale": "other"}
_PACKED_PER_COLUMN_BYTE = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")


@dataclass(frozen=True)
class PlainView:
    """What a quantised checkpoint would be unquantised.

    Attributes:
        config: its `config.json` without the quantisation settings.
        shapes: tensor name -> shape, with weights in place of their parts.
        encodings: weight -> how it is stored, for those that can be decoded.
        parts: tensor on disk -> the weight it is a part of.
    """

    config: Mapping[str, Any]
    shapes: Shapes
    encodings: Mapping[str, Encoding]
    parts: Mapping[str, str]


def view_plain(config: Mapping[str, Any], tensors: Shapes) -> PlainView:
    """Return the plain checkpoint that a quantised one stands for; a plain one is its own view.

    Args:
        config: the checkpoint's `config.json`.
        tensors: tensor name on disk -> shape.

    Raises:
        UnsupportedModelError: if the quantisation is of a kind not understood, or scales do not fit their weight.
    """
    settings = find_settings(config)
    if not settings:
        return PlainView(config, tensors, {}, {})
    _check_method(settings)
    shapes = dict(tensors)
    encodings: dict[str, Encoding] = {}
    parts: dict[str, str] = {}
    for weight, found in _collect_parts(tensors).items():
        codes = found.get("codes", weight)
        for name in (codes, *found.values()):
            shapes.pop(name, None)
            parts[name] = weight
        shapes[weight] = _plain_shape(weight, codes, tensors[codes], settings)
        encoding = _find_encoding(weight, codes, found.get("scales"), shapes[weight], tensors, settings)
        if encoding:
            encodings[weight] = encoding
    return PlainView(without_settings(config), shapes, encodings, parts)


def extend_to_parts(found: TensorMap, view: PlainView, tensors: Shapes) -> TensorMap:
    """Return the map of the tensors on disk from the map of the weights they are parts of.

    Args:
        found: the map of the view.
        view: the view.
        tensors: tensor name on disk -> shape.

    Raises:
        UnsupportedModelError: if a part cannot be divided among the experts that its weight holds.
    """
    if not view.parts:
        return found
    owners = {name: view.parts.get(name, name) for name in tensors}
    roles = {}
    for name, weight in owners.items():
        role = found.roles[weight]
        is_sliced = role.kind == "expert_axis" and name != weight
        roles[name] = _slice_part(name, tensors[name], role, view, weight) if is_sliced else role
    spans = found.expert_spans
    return replace(
        found,
        roles=roles,
        expert_spans={name: spans[weight] for name, weight in owners.items() if weight in spans},
        encodings=view.encodings,
        parts=view.parts,
        mtp_tensors=frozenset(name for name, weight in owners.items() if weight in found.mtp_tensors),
    )


def find_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantisation settings of a config or of a config nested in it, empty for a plain checkpoint."""
    nested = [part for part in config.values() if isinstance(part, dict)]
    places = (place.get(key) for place in (config, *nested) for key in _SETTINGS)
    return next((settings for settings in places if isinstance(settings, dict) and settings), {})


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the same model unquantised."""
    return {
        key: {name: item for name, item in value.items() if name not in _SETTINGS}
        if isinstance(value, dict)
        else value
        for key, value in config.items()
        if key not in _SETTINGS
    }


def _check_method(settings: Mapping[str, Any]) -> None:
    method = settings.get("quant_method")
    if method not in _METHODS:
        raise UnsupportedModelError(
            f"config.json has quant_method {method!r}, understood are {', '.join(_METHODS)}; {_ALTERNATIVES}"
        )


def _collect_parts(tensors: Shapes) -> dict[str, dict[str, str]]:
    """Return weight -> kind of part -> tensor; a part whose weight is not there stays a tensor of its own.

    Raises:
        UnsupportedModelError: if two tensors claim to be the same part.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        for weight, kind in _read_name(name):
            key = kind if kind != "other" else name
            if key in found[weight]:
                raise UnsupportedModelError(
                    f"'{found[weight][key]}' and '{name}' both claim to be the {kind} of '{weight}'; "
                    "fetch the checkpoint again"
                )
            found[weight][key] = name
    return {weight: parts for weight, parts in found.items() if "codes" in parts or weight in tensors}


def _read_name(name: str) -> Iterator[tuple[str, str]]:
    """Yield the weight a tensor would be a part of by its name, and as what; nothing for a weight."""
    module, _, word = name.rpartition(".")
    if word in _MODULE_PARTS:
        yield f"{module}.weight", _MODULE_PARTS[word]
        return
    for suffix, kind in _FUSED_PARTS.items():
        if word.endswith(suffix):
            yield name.removesuffix(suffix), kind
            return


def _plain_shape(weight: str, codes: str, shape: tuple[int, ...], settings: Mapping[str, Any]) -> tuple[int, ...]:
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
            f"{_ALTERNATIVES} with one packing"
        )
    return counts.pop()


def _list_groups(settings: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the format and the description of the weights of each of compressed-tensors' groups."""
    groups = settings.get("config_groups")
    found = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    described = [group for group in found if isinstance(group.get("weights"), dict)]
    return [(group.get("format") or settings.get("format"), group["weights"]) for group in described]


def _find_encoding(
    weight: str,
    codes: str,
    scales: str | None,
    shape: tuple[int, ...],
    tensors: Shapes,
    settings: Mapping[str, Any],
) -> Encoding | None:
    """Return how to decode a weight, None if its format is not decoded here.

    Raises:
        UnsupportedModelError: if the scales are not one per block of the weight.
    """
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
    if len(weight) < 2:
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


def _slice_part(name: str, shape: tuple[int, ...], role: TensorRole, view: PlainView, weight: str) -> TensorRole:
    """Return the role of a part of a weight that holds several experts along its first axis.

    Raises:
        UnsupportedModelError: if the part has no whole share for each of them.
    """
    if prod(shape) == 1:  # one number for all experts
        return TensorRole("untouched")
    experts = view.shapes[weight][role.axis] // role.rows_per_expert
    rows, rest = divmod(shape[0], experts)
    block = view.encodings[weight].block[0] if weight in view.encodings and role.rows_per_expert > 1 else 1
    if role.axis == 0 and not rest and rows in (role.rows_per_expert, role.rows_per_expert / block):
        return replace(role, rows_per_expert=rows)
    raise UnsupportedModelError(
        f"'{name}' of shape {list(shape)} has no whole share for each of the {experts} experts of "
        f"'{weight}'; {_ALTERNATIVES} with blocks inside experts"
    )


def _misfit(weight: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{weight}' {list(shape)} has scales of shape {list(scales)}, which are not one for each of its blocks; "
        "fetch the checkpoint again"
    )
