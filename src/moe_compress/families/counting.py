"""Where a config counts its experts, and which in-memory tensors grow with that number.

The model is built a second time on the meta device, with twice the experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.building import build_meta_model
from moe_compress.families.config_keys import COUNT_NAMES, with_value
from moe_compress.families.conversion import shapes_in_memory
from moe_compress.families.departures import Departure
from moe_compress.families.places import Place, find_text_places

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Growth:
    """How an in-memory tensor depends on the number of experts.

    Attributes:
        axis: the axis that grows.
        rows_per_expert: entries along it that one expert owns.
        num_others: entries behind the experts' that do not grow.
    """

    axis: int
    rows_per_expert: int
    num_others: int = 0


@dataclass(frozen=True)
class ExpertCount:
    """Where a config holds the number of experts, and what grows with it.

    Attributes:
        place: the part of the config that holds it.
        keys: dotted paths of the number, every alias in the file included.
        value: the number.
        growth: in-memory tensor -> how it grows.
    """

    place: Place
    keys: tuple[str, ...]
    value: int
    growth: Mapping[str, Growth]

    @property
    def uneven_problem(self) -> str | None:
        """Why the config cannot tell the number layer by layer, None where it can."""
        if hasattr(self.place.built, "num_hidden_layers"):
            return None
        return f"config.json counts experts in {self.place.path.removesuffix('.')}, which knows no layers"


def find_count(config: Mapping[str, Any], in_memory: Shapes, departure: Departure) -> ExpertCount:
    """Return the config's number of experts, found by doubling each candidate and seeing what grows.

    Args:
        config: the checkpoint's `config.json`.
        in_memory: in-memory tensor name -> shape, as built from it.
        departure: how the family differs.

    Raises:
        UnsupportedModelError: if nothing grows, so that there are no routed experts, or something grows oddly.
    """
    for place, keys, value in _list_candidates(config):
        doubled = shapes_in_memory(build_meta_model(with_value(config, keys, 2 * value)))
        growth = _compare(in_memory, doubled, value, departure)
        if any(entry.rows_per_expert == 1 for entry in growth.values()):
            copies = _list_copies(config, place, value)
            aliases = (place.path + name for name in departure.count_aliases)
            return ExpertCount(place, tuple(dict.fromkeys((*keys, *copies, *aliases))), value, growth)
    raise UnsupportedModelError(
        f"'{config.get('model_type')}' with this config has no routed experts; give a Mixture-of-Experts checkpoint"
    )


def _list_candidates(config: Mapping[str, Any]) -> Iterator[tuple[Place, tuple[str, ...], int]]:
    """Yield each integer of the language model's config that may count experts, and the paths of it in the file."""
    for place in find_text_places(config):
        for name in dict.fromkeys(place.names_of(name)[0] for name in COUNT_NAMES):
            value = getattr(place.built, name, None)
            if type(value) is int and value > 0:
                yield place, place.keys_of(name), value


def _list_copies(config: Mapping[str, Any], place: Place, value: int) -> Iterator[str]:
    """Yield paths of the same number under names this family does not read there, and another reader might."""
    for path, written in {place.path: place.written, "": config}.items():
        yield from (path + name for name in COUNT_NAMES if written.get(name) == value)


def _compare(before: Shapes, after: Shapes, value: int, departure: Departure) -> dict[str, Growth]:
    """Return the tensors that grew as the number of experts doubled.

    Raises:
        UnsupportedModelError: if one grew in another way than by whole experts along one axis.
    """
    growth = {}
    for name, shape in before.items():
        larger = after.get(name, shape)
        changed = [axis for axis, sizes in enumerate(zip(shape, larger, strict=True)) if len(set(sizes)) > 1]
        if not changed:
            continue
        axis = changed[0]
        rows, rest = divmod(larger[axis] - shape[axis], value)
        others = shape[axis] - value * rows
        are_whole = len(changed) == 1 and rows > 0 and not rest
        if not are_whole or (others and not (departure.has_rows_after_experts and others > 0)):
            raise UnsupportedModelError(
                f"'{name}' goes from {list(shape)} to {list(larger)} when the experts double from {value}; "
                "its expert axis is not understood"
            )
        growth[name] = Growth(axis, rows, others)
    return growth
