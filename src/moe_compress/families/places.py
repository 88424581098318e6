"""Where a `config.json` holds a number that its family knows by several names, at whatever depth."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe_compress.families.building import build_config, is_config


@dataclass(frozen=True)
class Place:
    """One part of a config: what transformers made of it, and what the file says.

    Attributes:
        path: dotted path of the part, with a dot at its end; empty for the whole.
        built: transformers' config object.
        written: the same part of `config.json`.
    """

    path: str
    built: Any
    written: Mapping[str, Any]

    def names_of(self, name: str) -> tuple[str, ...]:
        """Return the name the family itself uses, then its aliases."""
        aliases = getattr(self.built, "attribute_map", {})
        own = aliases.get(name, name)
        return own, *(alias for alias, meant in aliases.items() if meant == own)

    def keys_of(self, name: str) -> tuple[str, ...]:
        """Return the paths of a number that the file has, or the family's own one if it relies on the default."""
        names = self.names_of(name)
        found = tuple(self.path + key for key in names if key in self.written)
        return found or (self.path + names[0],)

    def has(self, name: str) -> bool:
        """Whether the family's model code knows such a number, so that it is not just a key someone wrote."""
        return any(hasattr(type(self.built), known) for known in self.names_of(name))


def find_text_places(config: Mapping[str, Any]) -> Iterator[Place]:
    """Yield the part that describes the language model, then the parts nested in it."""
    built = build_config(config)
    text = built.get_text_config()
    places = list(_walk(Place("", built, config)))
    start = next((place.path for place in places if place.built is text), "")
    yield from (place for place in places if place.path.startswith(start))


def _walk(place: Place) -> Iterator[Place]:
    yield place
    for key, part in vars(place.built).items():
        if is_config(part):
            written = place.written.get(key)
            yield from _walk(Place(f"{place.path}{key}.", part, written if isinstance(written, dict) else {}))
