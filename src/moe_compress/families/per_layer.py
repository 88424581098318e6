"""Layers with different numbers of experts: how a config tells them, and a model that has them.

transformers' `per_layer_config` says what differs, and few families' model code reads it. So a model is built with
the largest number everywhere, and the part of each smaller layer that holds its experts is taken from a model that
was built with that layer's number.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.config_keys import COUNT_NAMES

_LAYER = re.compile(r"^.*?\.(\d+)\.")

Counts = Mapping[str, int]


@dataclass(frozen=True)
class LayerCounts:
    """What a config with different numbers of experts says.

    Attributes:
        plain: the config without them, as if every layer had the largest number.
        prefix: dotted path, with a dot at its end, of the part of the config that tells them; empty for the whole.
        counts: decoder layer -> each name of the number -> that layer's number.
    """

    plain: Mapping[str, Any]
    prefix: str
    counts: Mapping[int, Counts]


def read_layer_counts(config: Mapping[str, Any]) -> LayerCounts | None:
    """Return the layers' own numbers of experts, None if a config has none.

    Raises:
        UnsupportedModelError: if `per_layer_config` is not what transformers writes.
    """
    parts = {"": config, **{f"{key}.": part for key, part in config.items() if isinstance(part, Mapping)}}
    for prefix, part in parts.items():
        layers = part.get("per_layer_config") or {}
        if not isinstance(layers, Mapping) or not all(isinstance(values, Mapping) for values in layers.values()):
            raise UnsupportedModelError(
                f"{prefix}per_layer_config in config.json is no table of layers and their settings; correct it"
            )
        if counts := {int(layer): own for layer, values in layers.items() if (own := _own_counts(layer, values))}:
            return LayerCounts(_without_counts(config, prefix), prefix, counts)
    return None


def _own_counts(layer: str, values: Mapping[str, Any]) -> dict[str, int]:
    found = {name: value for name, value in values.items() if name in COUNT_NAMES}
    for name, value in found.items():
        if not str(layer).isdecimal() or type(value) is not int or value < 1:
            raise UnsupportedModelError(
                f"per_layer_config in config.json gives layer {layer!r} {name} = {value!r}; give the layer's index "
                "and a number of at least 1"
            )
    return found


def _without_counts(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    plain = deepcopy(dict(config))
    part = plain[prefix.removesuffix(".")] if prefix else plain
    kept = {
        layer: rest
        for layer, values in part.pop("per_layer_config").items()
        if (rest := {name: value for name, value in values.items() if name not in COUNT_NAMES})
    }
    if kept:
        part["per_layer_config"] = kept
    return plain


def graft_layers(model: Any, counts: Mapping[int, Counts], build: Callable[[Counts], Any]) -> None:
    """Give some layers of a model their own number of experts, in place.

    Args:
        model: the model, with the largest number in every layer.
        counts: decoder layer -> each name of the number -> that layer's number.
        build: returns the same model with another number in every layer; called once for each number.

    Raises:
        UnsupportedModelError: if nothing in a layer depends on the number.
    """
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    layers_with: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for layer, own in counts.items():
        layers_with[tuple(sorted(own.items()))].append(layer)
    for number, layers in layers_with.items():
        donor = build(dict(number))
        places = _find_places({name: tensor.shape for name, tensor in donor.state_dict().items()}, before)
        for layer in layers:
            if layer not in places:
                raise UnsupportedModelError(
                    f"layer {layer} has its own {dict(number)} in per_layer_config, but no tensor of that layer "
                    "depends on it; correct config.json"
                )
            _take_over(model, donor, places[layer])


def _find_places(shapes: Mapping[str, Any], before: Mapping[str, Any]) -> dict[int, str]:
    """Return decoder layer -> the smallest module that holds every tensor whose shape differs."""
    owners: dict[int, list[list[str]]] = defaultdict(list)
    for name, shape in shapes.items():
        if shape != before.get(name) and (match := _LAYER.match(name)):
            owners[int(match[1])].append(name.split(".")[:-1])
    return {layer: ".".join(_common_start(paths)) for layer, paths in owners.items()}


def _common_start(paths: list[list[str]]) -> list[str]:
    first, last = min(paths), max(paths)  # what these two share, all between them share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same]


def _take_over(model: Any, donor: Any, place: str) -> None:
    """Replace one module by the donor's, under the model's own config: switches set there must reach it."""
    old, new = model.get_submodule(place), donor.get_submodule(place)
    for name, module in new.named_modules():
        if "config" in vars(module):
            module.config = old.get_submodule(name).config
    model.set_submodule(place, new)
