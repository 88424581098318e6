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
            place = place.setdefault(parent, {})
        place[last] = value
    return changed
