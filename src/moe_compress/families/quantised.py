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
from moe_compress.families.encodings import ALTERNATIVES, find_encoding, plain_shape
from moe_compress.types import Encoding, TensorMap, TensorRole

Shapes = Mapping[str, tuple[int, ...]]

_SETTINGS = ("quantization_config", "compression_config")
_METHODS = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
_MODULE_PARTS = {  # the last word of a name -> what it is to `<module>.weight`
    **dict.fromkeys(("weight_scale_inv", "weight_scale", "scale", "qscale_weight"), "scales"),
    "weight_packed": "codes",
    **dict.fromkeys(("weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale"), "other"),
    **dict.fromkeys(("input_scale", "input_zero_point", "input_global_scale"), "other"),
    **dict.fromkeys(("activation_scale", "qscale_act"), "other"),
}
_FUSED_PARTS = {"_blocks": "codes", "_scales": "scales", "_scale_inv": "scales", "_activation_scale": "other"}


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
        shapes[weight] = plain_shape(weight, codes, tensors[codes], settings)
        encoding = find_encoding(weight, codes, found.get("scales"), shapes[weight], tensors, settings)
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
            f"config.json has quant_method {method!r}, understood are {', '.join(_METHODS)}; {ALTERNATIVES}"
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
        f"'{weight}'; {ALTERNATIVES} with blocks inside experts"
    )
