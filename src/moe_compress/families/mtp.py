"""Multi-token-prediction layers: decoder layers after the last, which transformers passes over when it loads.

Engines build them with the model's own number of experts, so they are cut like the last MoE layer, whose tensor
names they share but for what stands in front. Where they do not, they can only be dropped.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.building import build_config
from moe_compress.families.verify import name_some
from moe_compress.types import TensorMap, TensorRole

Shapes = Mapping[str, tuple[int, ...]]
Spans = Mapping[str, tuple[int, int]]

_COUNT_KEYS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
    "num_mtp_modules",
)
_NAMED = re.compile(r"(^|\.)mtp(_\w+)?\.")
_NUMBERED = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")
_EXPERT = re.compile(r"(\d{1,9})\.")


@dataclass(frozen=True)
class _Pattern:
    """What the last MoE layer's tensors are called, without the layer's own prefix.

    Attributes:
        layer: that layer.
        num_experts: its experts.
        rows: name of a tensor with a slice per expert -> its shape and role.
        stems: what stands before an expert's number in names of one tensor per expert.
        tails: what stands behind it; empty when the layer's experts are fused.
    """

    layer: int
    num_experts: int
    rows: Mapping[str, tuple[tuple[int, ...], TensorRole]]
    stems: frozenset[str]
    tails: frozenset[str]


def extend_to_mtp(
    found: TensorMap, config: Mapping[str, Any], tensors: Shapes, ignored: frozenset[str]
) -> TensorMap:
    """Return the map with multi-token-prediction layers recognised; their experts follow the last MoE layer's plan.

    Args:
        found: the map without them.
        config: the checkpoint's `config.json`.
        tensors: tensor name on disk -> shape.
        ignored: the tensors that transformers passes over when it loads.

    Raises:
        UnsupportedModelError: if experts are passed over that are in no such layer.
    """
    depth = getattr(build_config(config).get_text_config(), "num_hidden_layers", None)
    names = frozenset(name for name in ignored if _is_mtp(name, depth))
    if strangers := tuple(sorted(name for name in ignored - names if "expert" in name)):
        raise UnsupportedModelError(
            f"{len(strangers)} tensors hold experts that transformers does not load and are in no layer for "
            f"multi-token prediction: {name_some(strangers)}; this checkpoint cannot be rewritten as it is"
        )
    found = replace(found, mtp_tensors=names, mtp_keys=tuple(_list_count_keys(config, bool(names))))
    if not names:
        return found
    pattern = _read_pattern(found, tensors)
    roles, spans = _find_experts(pattern, names, tensors)
    if problem := _find_problem(pattern, names, roles, spans):
        return replace(found, mtp_problem=problem)
    return replace(found, roles={**found.roles, **roles}, expert_spans={**found.expert_spans, **spans})


def _is_mtp(name: str, depth: int | None) -> bool:
    if _NAMED.search(name):
        return True
    numbered = _NUMBERED.search(name)
    return depth is not None and numbered is not None and int(numbered[1]) >= depth


def _list_count_keys(config: Mapping[str, Any], has_tensors: bool) -> Iterator[str]:
    """Yield the dotted paths of the number of these layers: those written, else the one that readers look for."""
    nested = {key: part for key, part in config.items() if isinstance(part, dict)}
    written = [key for key in _COUNT_KEYS if config.get(key)]
    written += [f"{place}.{key}" for place, part in nested.items() for key in _COUNT_KEYS if part.get(key)]
    yield from written
    built = build_config(config)
    text = built.get_text_config()
    if has_tensors and not any(key in part for part in (config, *nested.values()) for key in _COUNT_KEYS):
        name = getattr(text, "attribute_map", {}).get("num_mtp_layers", _COUNT_KEYS[0])
        place = next((key for key in nested if getattr(built, key, None) is text), None)
        yield f"{place}.{name}" if place else name


def _read_pattern(found: TensorMap, tensors: Shapes) -> _Pattern:
    """Return how the last MoE layer's expert tensors are called."""
    layer, num_experts = found.layout.layers[-1], found.layout.num_experts[-1]
    prefix_end = f".{layer}."
    rows, stems, tails = {}, set(), set()
    for name, role in found.roles.items():
        if role.layer != layer:
            continue
        if role.kind == "expert":
            start, end = found.expert_spans[name]
            stems.add(name[:start].partition(prefix_end)[2])
            tails.add(name[end:])
        else:
            suffix = name.partition(prefix_end)[2]
            rows[suffix] = (tensors[name], role)
            if not role.is_router:
                stems.add(f"{suffix.rpartition('.')[0]}.")
    return _Pattern(layer, num_experts, rows, frozenset(stems), frozenset(tails))


def _find_experts(
    pattern: _Pattern, names: frozenset[str], tensors: Shapes
) -> tuple[dict[str, TensorRole], dict[str, tuple[int, int]]]:
    """Return the role of each tensor that holds experts or router rows, and where names count experts."""
    roles: dict[str, TensorRole] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name in names:
        for place in (match.end() for match in re.finditer(r"(?:^|\.)", name)):
            shape, role = pattern.rows.get(name[place:], (None, None))
            if role is not None and shape == tensors[name]:
                roles[name] = role
            stem = next((stem for stem in pattern.stems if name.startswith(stem, place)), None)
            number = _EXPERT.match(name, place + len(stem)) if stem else None
            if number is not None:
                roles[name] = TensorRole("expert", pattern.layer, expert=int(number[1]))
                spans[name] = number.span(1)
    return roles, spans


def _find_problem(
    pattern: _Pattern, names: frozenset[str], roles: Mapping[str, TensorRole], spans: Spans
) -> str | None:
    """Return why the layers cannot be pruned like the last MoE layer, None if they can or have no experts."""
    counted: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name, (start, end) in spans.items():
        counted[name[:start], name[end:]].add(int(name[start:end]))
    for (head, tail), experts in sorted(counted.items()):
        if experts != set(range(pattern.num_experts)):
            return f"'{head}*{tail}' is there for {len(experts)} experts and the model has {pattern.num_experts}"
    rest = names - roles.keys()
    strange = {name for name in rest if re.search(r"\bexperts?\b", name)}
    strange |= {name for name in rest if any(name.endswith(f".{suffix}") for suffix in pattern.rows)}
    if strange:
        few = name_some(tuple(sorted(strange)))
        return f"{len(strange)} of their tensors are not like layer {pattern.layer}'s: {few}"
    return _find_missing(pattern, roles, counted)


def _find_missing(
    pattern: _Pattern, roles: Mapping[str, TensorRole], counted: Mapping[tuple[str, str], set[int]]
) -> str | None:
    """Return which tensor of the last MoE layer a layer with experts lacks, None if it lacks none."""
    prefixes = {
        name.removesuffix(suffix) for name in roles for suffix in pattern.rows if name.endswith(f".{suffix}")
    }
    prefixes |= {head.removesuffix(stem) for head, _ in counted for stem in pattern.stems if head.endswith(stem)}
    for prefix in sorted(prefixes):
        tails = {tail for head, tail in counted if head.startswith(prefix)}
        needed = [suffix for suffix, (_, role) in pattern.rows.items() if role.is_router or not tails]
        missing = [f"{prefix}{suffix}" for suffix in needed if f"{prefix}{suffix}" not in roles]
        missing += [f"{prefix}*{tail}" for tail in sorted(pattern.tails - tails)]
        if missing:
            return f"they lack {len(missing)} tensors of layer {pattern.layer}: {name_some(tuple(missing))}"
    return None
