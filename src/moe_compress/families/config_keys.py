"""Dotted paths into a `config.json`."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

COUNT_NAMES = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
)
"""What families call the number of routed experts."""


def with_value(config: Mapping[str, Any], keys: Iterable[str], value: int) -> dict[str, Any]:
    """Return a copy of a config with each dotted path set to one value, and nothing else changed."""
    changed = deepcopy(dict(config))
    for key in keys:
        *parents, last = key.split(".")
        place = changed
        for parent in parents:
            place = place[parent]
        place[last] = value
    return changed


def with_layer_values(config: Mapping[str, Any], keys: Iterable[str], values: Mapping[int, int]) -> dict[str, Any]:
    """Return a copy of a config in which some layers have values of their own, written as transformers does.

    Args:
        config: the config.
        keys: dotted paths of one value's names, all in the same part of the config.
        values: layer -> its value.
    """
    changed = deepcopy(dict(config))
    width = len(str(max(values)))  # zero-padded, so that names sort as numbers do
    for key in keys:
        *parents, last = key.split(".")
        place = changed
        for parent in parents:
            place = place[parent]
        layers = place.setdefault("per_layer_config", {})
        for layer, value in values.items():
            layers.setdefault(str(layer).zfill(width), {})[last] = value
    return changed
