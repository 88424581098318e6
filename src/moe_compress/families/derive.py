"""Which checkpoint tensor is which expert's: those that grow when the config's number of experts does.

The model is built twice on the meta device, the second time with twice the experts. A tensor that is larger then
has one slice per expert along the axis that grew; transformers' weight conversion says which checkpoint tensors go
into it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.config_keys import COUNT_NAMES, with_value
from moe_compress.families.conversion import (
    Source,
    build_config,
    build_meta_model,
    locate_sources,
    report_loading,
    shapes_in_memory,
)
from moe_compress.families.per_layer import read_layer_counts
from moe_compress.families.verify import name_some
from moe_compress.types import MoELayout, TensorMap, TensorRole

Shapes = Mapping[str, tuple[int, ...]]

_TOP_K_NAMES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")
_LAYER = re.compile(r"^(?P<prefix>.*?)\.(?P<layer>\d+)\.")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class _Growth:
    """How an in-memory tensor depends on the number of experts."""

    axis: int
    rows_per_expert: int


@dataclass(frozen=True)
class _Count:
    """Where a config holds the number of experts, and what grows with it."""

    keys: tuple[str, ...]
    value: int
    growth: Mapping[str, _Growth]


def derive_tensor_map(config: Mapping[str, Any], tensors: Shapes) -> TensorMap:
    """Return what every tensor of a checkpoint is, from its config, names and shapes.

    Args:
        config: the checkpoint's `config.json`.
        tensors: tensor name on disk -> shape.

    Raises:
        UnsupportedModelError: if transformers does not know the architecture, it has no routed experts, or a
            tensor cannot be told apart.
    """
    if read_layer_counts(config) is not None:
        raise UnsupportedModelError(
            "this checkpoint's layers keep different numbers of experts (per_layer_config in config.json), so it "
            "was compressed before; compress the model it was made from"
        )
    _refuse_unknown(tuple(n for n in tensors if n.endswith("tid2eid")), "look experts up by token id")
    report = report_loading(config, tensors)
    _refuse_unknown(report.missing + report.unexpected + report.mismatched, "do not fit the config")
    _refuse_unknown(
        tuple(name for name in report.ignored if "expert" in name),
        "hold experts of a layer that transformers does not load (multi-token prediction)",
    )
    model = build_meta_model(config)
    in_memory = shapes_in_memory(model)
    count = _find_count(config, in_memory)
    layers = _layers_of(count.growth)
    roles: dict[str, TensorRole] = {}
    spans: dict[str, tuple[int, int]] = {}
    for source, names in _group_by_source(locate_sources(model, tensors)).items():
        growth = count.growth.get(source.target)
        if growth is None:
            roles.update(dict.fromkeys(names, TensorRole("untouched")))
        elif (axis := _find_axis([tensors[name] for name in names], in_memory[source.target], growth)) is not None:
            roles[names[0]] = TensorRole(
                "expert_axis",
                layers[source.target],
                axis=axis,
                rows_per_expert=growth.rows_per_expert,
                is_router=_is_router(source.target, count, in_memory),
            )
        else:
            found = _find_spans(names, count.value)
            spans.update(found)
            for name, (start, end) in found.items():
                roles[name] = TensorRole("expert", layers[source.target], expert=int(name[start:end]))
    return TensorMap(_layout_of(config, count, layers), roles, count.keys, spans)


def _group_by_source(sources: Mapping[str, Source]) -> dict[Source, list[str]]:
    """Return the names that become one part of one in-memory tensor together.

    Raises:
        UnsupportedModelError: if two tensors claim to be the same one.
    """
    together: dict[Source, list[str]] = defaultdict(list)
    for name, source in sources.items():
        together[source].append(name)
    for source, names in together.items():
        if source.pattern is None and len(names) > 1:
            _refuse_unknown(tuple(names), f"all claim to be '{source.target}'")
    return together


def _refuse_unknown(names: tuple[str, ...], why: str) -> None:
    if names:
        raise UnsupportedModelError(
            f"{len(names)} tensors {why}: {name_some(names)}; this checkpoint cannot be rewritten as it is"
        )


def _find_axis(on_disk: list[tuple[int, ...]], in_memory: tuple[int, ...], growth: _Growth) -> int | None:
    """Return the expert axis of a tensor that is alone in its target, None if it is one of many or unclear."""
    if len(on_disk) != 1:
        return None
    if on_disk[0] == in_memory:
        return growth.axis
    places = [axis for axis, size in enumerate(on_disk[0]) if size == in_memory[growth.axis]]
    is_transposed = sorted(on_disk[0]) == sorted(in_memory)
    return places[0] if is_transposed and len(places) == 1 else None


def _is_router(target: str, count: _Count, in_memory: Shapes) -> bool:
    """Whether a tensor is the router's: its module owns nothing that has a matrix per expert."""
    owner = target.rpartition(".")[0]
    siblings = (name for name in count.growth if name.rpartition(".")[0] == owner)
    has_matrices = any(len(in_memory[name]) > 2 or count.growth[name].rows_per_expert > 1 for name in siblings)
    return not has_matrices or len([size for size in in_memory[target] if size > 1]) == 1


def _find_spans(names: list[str], num_experts: int) -> dict[str, tuple[int, int]]:
    """Return where in each name the expert's number stands: the one number that differs, counting 0..E-1.

    Raises:
        UnsupportedModelError: if no such number exists.
    """
    numbers = {name: list(_NUMBER.finditer(name)) for name in names}
    width = len(numbers[names[0]])
    if len(names) == num_experts and all(len(found) == width for found in numbers.values()):
        for place in range(width):
            spans = {name: found[place].span() for name, found in numbers.items()}
            stems = {name[:start] + name[end:] for name, (start, end) in spans.items()}
            counted = {name[start:end] for name, (start, end) in spans.items()}
            if len(stems) == 1 and counted == {str(expert) for expert in range(num_experts)}:
                return spans
    raise UnsupportedModelError(
        f"{len(names)} tensors go into one of {num_experts} experts and are not one per expert: "
        f"{name_some(tuple(names))}; this layout is not understood"
    )


def _find_count(config: Mapping[str, Any], in_memory: Shapes) -> _Count:
    """Return the config's number of experts, found by doubling each candidate and seeing what grows.

    Raises:
        UnsupportedModelError: if nothing grows, so that there are no routed experts.
    """
    for keys, stale, value in _list_candidates(config):
        doubled = shapes_in_memory(build_meta_model(with_value(config, keys, 2 * value)))
        growth = _compare(in_memory, doubled, value)
        if any(entry.rows_per_expert == 1 for entry in growth.values()):
            return _Count((*keys, *stale), value, growth)
    raise UnsupportedModelError(
        f"'{config.get('model_type')}' with this config has no routed experts; give a Mixture-of-Experts checkpoint"
    )


def _compare(before: Shapes, after: Shapes, value: int) -> dict[str, _Growth]:
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
        if len(changed) > 1 or shape[axis] % value or larger[axis] != 2 * shape[axis]:
            raise UnsupportedModelError(
                f"'{name}' goes from {list(shape)} to {list(larger)} when the experts double from {value}; "
                "its expert axis is not understood"
            )
        growth[name] = _Growth(axis, shape[axis] // value)
    return growth


def _list_candidates(config: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str], int]]:
    """Yield each integer of the (text) config that may count experts.

    Yields:
        Dotted paths of the number and its aliases; of other names that hold the same number, which this family does
        not read and another reader might; the number.
    """
    built = build_config(config)
    text = built.get_text_config()
    nested = (key for key, part in config.items() if isinstance(part, dict) and getattr(built, key, None) is text)
    place = None if text is built else next(nested, None)
    written = config[place] if place else config
    prefix = f"{place}." if place else ""
    aliases = getattr(text, "attribute_map", {})
    for name in dict.fromkeys(aliases.get(name, name) for name in COUNT_NAMES):
        value = getattr(text, name, None)
        if type(value) is not int or value < 1:
            continue
        known = [name, *(alias for alias in COUNT_NAMES if aliases.get(alias) == name)]
        stale = [key for key in COUNT_NAMES if key not in known and written.get(key) == value]
        yield [prefix + key for key in known], [prefix + key for key in stale], value


def _layers_of(growth: Mapping[str, _Growth]) -> dict[str, int]:
    """Return in-memory tensor -> decoder layer.

    Raises:
        UnsupportedModelError: if experts lie outside one stack of decoder layers.
    """
    matches = {name: _LAYER.match(name) for name in growth}
    prefixes = {match["prefix"] if match else None for match in matches.values()}
    if len(prefixes) != 1 or None in prefixes:
        raise UnsupportedModelError(
            f"experts lie in more than one stack of layers ({sorted(map(str, prefixes))}); only a single stack "
            "of decoder layers can be compressed"
        )
    return {name: int(match["layer"]) for name, match in matches.items() if match}


def _layout_of(config: Mapping[str, Any], count: _Count, layers: Mapping[str, int]) -> MoELayout:
    """Return the layout, with the router's limits as its family reads them from the config.

    Raises:
        UnsupportedModelError: if the config does not say how many experts a token gets.
    """
    text = build_config(config).get_text_config()
    top_k = next((value for name in _TOP_K_NAMES if type(value := getattr(text, name, None)) is int), None)
    if top_k is None:
        raise UnsupportedModelError(
            f"'{config.get('model_type')}' does not say how many experts a token gets (looked for "
            f"{', '.join(_TOP_K_NAMES)}); add it to config.json"
        )
    is_grouped = getattr(text, "topk_method", None) != "greedy"
    groups = (getattr(text, "n_group", None) or 1) if is_grouped else 1
    chosen = (getattr(text, "topk_group", None) or 1) if is_grouped else 1
    indices = tuple(sorted(set(layers.values())))
    return MoELayout(indices, (count.value,) * len(indices), top_k, groups, chosen)
