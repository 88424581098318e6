"""How many experts a router picks and among how many groups, as the family reads it from the config."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.counting import ExpertCount
from moe_compress.families.departures import Departure
from moe_compress.families.places import Place, find_text_places
from moe_compress.types import MoELayout

_TOP_K_NAMES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")


def read_layout(
    config: Mapping[str, Any], count: ExpertCount, layers: Iterable[int], departure: Departure
) -> tuple[MoELayout, tuple[str, ...]]:
    """Return the layout, and the dotted paths of the numbers of groups when the router has groups.

    Raises:
        UnsupportedModelError: if the config does not say how many experts a token gets, says it differently for
            different layers, or says what the router cannot do.
    """
    family, text = str(config.get("model_type")), next(find_text_places(config))
    top_k = _read_top_k((count.place, text), family)
    if departure.top_k not in (None, top_k):
        raise UnsupportedModelError(
            f"'{family}' gives a token {top_k} experts, and its router can only pick {departure.top_k}; "
            f"correct {_TOP_K_NAMES[0]} in config.json"
        )
    num_groups, topk_groups, keys = _read_groups(text)
    indices = tuple(sorted(set(layers)))
    return MoELayout(indices, (count.value,) * len(indices), top_k, num_groups, topk_groups), keys


def _read_top_k(places: tuple[Place, ...], family: str) -> int:
    for value in (getattr(place.built, name, None) for place in places for name in _TOP_K_NAMES):
        numbers = value if isinstance(value, list) else [value]
        if len(set(numbers)) > 1:
            raise UnsupportedModelError(
                f"'{family}' gives a token {numbers[:4]}... experts in different layers; only one number for all "
                "layers is understood"
            )
        if numbers and type(numbers[0]) is int:
            return int(numbers[0])
    raise UnsupportedModelError(
        f"'{family}' does not say how many experts a token gets (looked for {', '.join(_TOP_K_NAMES)}); "
        "add it to config.json"
    )


def _read_groups(text: Place) -> tuple[int, int, tuple[str, ...]]:
    """Return the number of groups, how many of them a token may use, and where the file says so."""
    if text.has("topk_method") and text.built.topk_method == "greedy":
        return 1, 1, ()
    if not (text.has("n_group") and text.has("topk_group")):
        return 1, 1, ()
    num_groups, topk_groups = text.built.n_group or 1, text.built.topk_group or 1
    keys = (*text.keys_of("n_group"), *text.keys_of("topk_group"))
    return num_groups, topk_groups, keys if num_groups > 1 else ()
