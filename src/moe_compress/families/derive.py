"""Which checkpoint tensor is which expert's: those that grow when the config's number of experts does.

A tensor that is larger in a model with twice the experts has one slice per expert along the axis that grew;
transformers' weight conversion says which checkpoint tensors go into it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.building import build_config, build_meta_model
from moe_compress.families.conversion import LoadReport, Source, locate_sources, report_loading, shapes_in_memory
from moe_compress.families.counting import ExpertCount, Growth, find_count
from moe_compress.families.departures import Departure, find_departure
from moe_compress.families.mtp import extend_to_mtp
from moe_compress.families.per_layer import read_layer_counts
from moe_compress.families.quantised import extend_to_parts, view_plain
from moe_compress.families.routing import read_layout
from moe_compress.families.verify import list_misfits, name_some
from moe_compress.types import MoELayout, TensorMap, TensorRole

Shapes = Mapping[str, tuple[int, ...]]

_LAYER = re.compile(r"^(?P<prefix>.*?)\.(?P<layer>\d+)\.")
_NUMBER = re.compile(r"\d+")


def derive_tensor_map(config: Mapping[str, Any], tensors: Shapes) -> TensorMap:
    """Return what every tensor of a checkpoint is, from its config, names and shapes.

    Args:
        config: the checkpoint's `config.json`.
        tensors: tensor name on disk -> shape.

    Raises:
        UnsupportedModelError: if transformers does not know the architecture, it has no routed experts, its family
            is one that cannot be compressed, a tensor cannot be told apart, or the quantisation is not understood.
    """
    view = view_plain(config, tensors)
    return extend_to_parts(_derive_plain(view.config, view.shapes), view, tensors)


def derive_layout(config: Mapping[str, Any], tensors: Shapes) -> MoELayout:
    """Return the layout of a checkpoint, also of one whose layers keep different numbers of experts.

    Args:
        config: the checkpoint's `config.json`.
        tensors: tensor name on disk -> shape.

    Raises:
        UnsupportedModelError: as `derive_tensor_map`.
    """
    view = view_plain(config, tensors)
    layers = read_layer_counts(view.config)
    if layers is None:
        return derive_tensor_map(config, tensors).layout
    _refuse_misfits(report_loading(build_meta_model(view.config), view.shapes))
    departure = find_departure(build_config(layers.plain).get_text_config().model_type)
    count = find_count(layers.plain, shapes_in_memory(build_meta_model(layers.plain)), departure)
    alike, _ = read_layout(layers.plain, count, _layers_of(count.growth).values(), departure)
    own = {layer: max(numbers.values()) for layer, numbers in layers.counts.items()}
    return replace(alike, num_experts=tuple(own.get(layer, count.value) for layer in alike.layers))


def find_routed_parameters(config: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the in-memory names of what the routers own, and of what the routed experts own.

    Args:
        config: the `config.json` of a checkpoint that is not quantised; its layers may be of different size.

    Raises:
        UnsupportedModelError: if there are no routed experts, or transformers does not know the architecture.
    """
    layers = read_layer_counts(config)
    plain = layers.plain if layers else config
    in_memory = shapes_in_memory(build_meta_model(plain))
    count = find_count(plain, in_memory, find_departure(build_config(plain).get_text_config().model_type))
    routers = _find_routers(count, _layers_of(count.growth), in_memory)
    return routers, set(count.growth) - routers


def _refuse_misfits(report: LoadReport) -> None:
    if misfits := list_misfits(report):
        raise UnsupportedModelError(
            f"tensors and config do not fit each other: {'; '.join(misfits)}; this checkpoint cannot be rewritten "
            "as it is"
        )


def _derive_plain(config: Mapping[str, Any], tensors: Shapes) -> TensorMap:
    """Return the map of a checkpoint that is not quantised."""
    departure = find_departure(build_config(config).get_text_config().model_type)
    _refuse_beforehand(config, tensors, departure)
    model = build_meta_model(config)
    in_memory, sources = shapes_in_memory(model), locate_sources(model, tensors)
    report = report_loading(model, tensors)
    _refuse_misfits(report)
    count = find_count(config, in_memory, departure)
    layers = _layers_of(count.growth)
    routers = _find_routers(count, layers, in_memory)
    roles: dict[str, TensorRole] = {}
    spans: dict[str, tuple[int, int]] = {}
    for source, names in _group_by_source(sources).items():
        growth = count.growth.get(source.target)
        if growth is None:
            roles.update(dict.fromkeys(names, TensorRole("untouched")))
        elif (axis := _find_axis([tensors[name] for name in names], in_memory[source.target], growth)) is not None:
            roles[names[0]] = TensorRole(
                "expert_axis",
                layers[source.target],
                axis=axis,
                rows_per_expert=growth.rows_per_expert,
                num_others=growth.num_others,
                is_router=source.target in routers,
            )
        else:
            found = _find_spans(names, count.value)
            spans.update(found)
            for name, (start, end) in found.items():
                roles[name] = TensorRole("expert", layers[source.target], expert=int(name[start:end]))
    layout, group_keys = read_layout(config, count, layers.values(), departure)
    is_converted = any(source.pattern for source in sources.values() if source.target in count.growth)
    is_interleaved = any(_interleaves(model, name) for name in count.growth) or (
        departure.interleaves_on_disk and is_converted
    )
    problem = count.uneven_problem
    tensor_map = TensorMap(
        layout, roles, count.keys, spans, group_keys, is_interleaved=is_interleaved, uneven_problem=problem
    )
    ignored = frozenset(report.ignored)
    passed_over = frozenset(name for name, source in sources.items() if source.target in ignored)
    return extend_to_mtp(tensor_map, config, tensors, passed_over)


def _refuse_beforehand(config: Mapping[str, Any], tensors: Shapes, departure: Departure) -> None:
    """Refuse what config and names alone tell cannot be compressed.

    Raises:
        UnsupportedModelError: saying why.
    """
    if departure.refused:
        family = build_config(config).get_text_config().model_type
        raise UnsupportedModelError(f"'{family}' cannot be compressed: {departure.refused}")
    _refuse_unknown(tuple(n for n in tensors if n.endswith("tid2eid")), "look experts up by token id")
    if read_layer_counts(config) is not None:
        raise UnsupportedModelError(
            "this checkpoint's layers keep different numbers of experts (per_layer_config in config.json), so it "
            "was compressed before; compress the model it was made from"
        )


def _group_by_source(sources: Mapping[str, Source]) -> dict[Source, list[str]]:
    """Return the names that become one part of one in-memory tensor together.

    Raises:
        UnsupportedModelError: if two tensors claim to be the same one.
    """
    together: dict[Source, list[str]] = defaultdict(list)
    claims: dict[str, list[str]] = defaultdict(list)
    for name, source in sources.items():
        together[source].append(name)
        claims[source.target].append(name)
    for source in together:
        if source.pattern is None and len(names := claims[source.target]) > 1:
            _refuse_unknown(tuple(names), f"all claim to be '{source.target}'")
    return together


def _refuse_unknown(names: tuple[str, ...], why: str) -> None:
    if names:
        raise UnsupportedModelError(
            f"{len(names)} tensors {why}: {name_some(names)}; this checkpoint cannot be rewritten as it is"
        )


def _find_axis(on_disk: list[tuple[int, ...]], in_memory: tuple[int, ...], growth: Growth) -> int | None:
    """Return the expert axis of a tensor that is alone in its part of the target, None if it is one of many."""
    if len(on_disk) != 1:
        return None
    shape = on_disk[0]
    places = [axis for axis, size in enumerate(shape) if size == in_memory[growth.axis]]
    if growth.axis in places and _is_part(shape, in_memory):
        return growth.axis
    is_transposed = sorted(shape) == sorted(in_memory)
    return places[0] if is_transposed and len(places) == 1 else None


def _is_part(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a tensor is a whole, or what is joined with its like along one axis to make it."""
    if len(shape) != len(whole):
        return False
    shorter = [(size, total) for size, total in zip(shape, whole, strict=True) if size != total]
    return len(shorter) <= 1 and all(total % size == 0 for size, total in shorter)


def _find_routers(count: ExpertCount, layers: Mapping[str, int], in_memory: Shapes) -> set[str]:
    """Return the tensors the routers own.

    Raises:
        UnsupportedModelError: if a layer has more than one router, so that one plan would cut different experts.
    """
    routers = {name for name in count.growth if _is_router(name, count, in_memory)}
    matrices = sorted(name for name in routers if sum(size > 1 for size in in_memory[name]) > 1)
    crowded = [name for name in matrices if sum(layers[other] == layers[name] for other in matrices) > 1]
    _refuse_unknown(tuple(crowded), "are routers of several sets of experts in one layer, with one number for all")
    return routers


def _interleaves(model: Any, target: str) -> bool:
    """Whether the module that owns an in-memory tensor joins gate and up in turn and not one after the other."""
    return not getattr(model.get_submodule(target.rpartition(".")[0]), "is_concatenated", True)


def _is_router(target: str, count: ExpertCount, in_memory: Shapes) -> bool:
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


def _layers_of(growth: Mapping[str, Growth]) -> dict[str, int]:
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
