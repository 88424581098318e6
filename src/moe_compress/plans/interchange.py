"""Which experts stay, in the formats other projects publish and read: text in, kept experts out, and back.

    EASY-EP       `[[1.0, 0.0, ...], ...]`: a row per layer with experts, 1 for an expert that stays
    C-Prune       `{"1": [8, 12], ...}`: decoder layer -> experts that go; layers that lose none may be left out
    vLLM-Ascend   a line `{"0": [106, 65, ...]}` per decoder layer with experts: all of them, best first

None of them can say merging, and only the last says an order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_compress.errors import PlanError
from moe_compress.types import CompressionPlan, FloatArray, MoELayout, RouterGroups, pruning_groups

Kept = tuple[tuple[int, ...], ...]


def read_mask(text: str, layout: MoELayout, router_groups: RouterGroups = "balanced") -> CompressionPlan:
    """Return the plan of EASY-EP's mask.

    Raises:
        PlanError: if it is not a mask for this layout.
    """
    rows = _parse(text, "EASY-EP mask")
    if not isinstance(rows, list) or len(rows) != len(layout.layers):
        raise PlanError(
            f"an EASY-EP mask for this model has {len(layout.layers)} rows, one per layer with experts, not "
            f"{len(rows) if isinstance(rows, list) else type(rows).__name__}; take the mask of this model"
        )
    kept = []
    for layer, experts, row in zip(layout.layers, layout.num_experts, rows, strict=True):
        if not isinstance(row, list) or len(row) != experts or not all(value in (0, 1) for value in row):
            raise PlanError(
                f"layer {layer}'s row of the EASY-EP mask is not {experts} numbers that are 0 or 1; take the mask "
                "of this model"
            )
        kept.append(tuple(expert for expert, value in enumerate(row) if value == 1))
    return _plan(tuple(kept), layout, "easy_ep_mask", router_groups)


def write_mask(plan: CompressionPlan) -> str:
    """Return the plan as EASY-EP's mask.

    Raises:
        PlanError: if the plan merges.
    """
    _check_prunes(plan, "EASY-EP's mask")
    rows = [np.isin(np.arange(experts), kept).astype(float).tolist() for experts, kept in _layers(plan)]
    return json.dumps(rows)


def read_pruned(text: str, layout: MoELayout, router_groups: RouterGroups = "balanced") -> CompressionPlan:
    """Return the plan of C-Prune's lists of pruned experts.

    Raises:
        PlanError: if they are not lists for this layout.
    """
    lists = _parse(text, "C-Prune list")
    if not isinstance(lists, dict):
        raise PlanError(
            f"a C-Prune list is {{layer: [pruned]}}, not a {type(lists).__name__}; take its JSON as it is"
        )
    if unknown := sorted(set(lists) - {str(layer) for layer in layout.layers}):
        raise PlanError(
            f"the C-Prune list has a layer {unknown[0]}, but this model's layers with experts are "
            f"{layout.layers[0]}..{layout.layers[-1]}; take the list of this model"
        )
    kept = []
    for layer, experts in zip(layout.layers, layout.num_experts, strict=True):
        gone = _distinct(lists.get(str(layer), []), experts, f"layer {layer} of the C-Prune list")
        kept.append(tuple(expert for expert in range(experts) if expert not in gone))
    return _plan(tuple(kept), layout, "c_prune_list", router_groups)


def write_pruned(plan: CompressionPlan) -> str:
    """Return the plan as C-Prune's lists of pruned experts.

    Raises:
        PlanError: if the plan merges.
    """
    _check_prunes(plan, "C-Prune's list")
    layers = zip(plan.layout.layers, _layers(plan), strict=True)
    return json.dumps({str(layer): sorted(set(range(experts)) - set(kept)) for layer, (experts, kept) in layers})


def read_ordered(
    text: str, layout: MoELayout, keep: Sequence[int], router_groups: RouterGroups = "balanced"
) -> CompressionPlan:
    """Return the plan that keeps the first experts of each of vLLM-Ascend's ordered lists.

    Args:
        text: JSON lines.
        layout: the model's layout.
        keep: how many stay of each layer; `methods.experts_to_keep` gives a budget's.
        router_groups: see `CompressionPlan`.

    Raises:
        PlanError: if they are not lists for this layout.
    """
    lists: dict[str, Any] = {}
    for line in filter(str.strip, text.splitlines()):
        entry = _parse(line, "line of the ordered list")
        if not isinstance(entry, dict) or len(entry) != 1 or set(entry) & set(lists):
            raise PlanError(
                f"the ordered list's line {line[:40]!r} is not one new layer; write {{layer: [experts]}}"
            )
        lists |= entry
    if differing := sorted(set(lists) ^ {str(layer) for layer in layout.layers}):
        raise PlanError(
            f"the ordered list and this model differ in layer {differing[0]}; list each of its layers with "
            f"experts, {layout.layers[0]}..{layout.layers[-1]}"
        )
    scores_LE = np.full((len(layout.layers), max(layout.num_experts)), -1.0)
    kept = []
    for row, (layer, experts) in enumerate(zip(layout.layers, layout.num_experts, strict=True)):
        order = _distinct(lists[str(layer)], experts, f"layer {layer} of the ordered list")
        if len(order) != experts:
            raise PlanError(
                f"layer {layer} of the ordered list has {len(order)} of {experts} experts; list all of them"
            )
        scores_LE[row, order] = np.arange(experts, 0, -1)
        kept.append(tuple(sorted(order[: keep[row]])))
    return _plan(tuple(kept), layout, "ordered_list", router_groups, scores_LE)


def write_ordered(plan: CompressionPlan) -> str:
    """Return the plan as vLLM-Ascend's ordered lists: kept experts first, best first by the plan's scores.

    Raises:
        PlanError: if the plan merges or has no scores to order by.
    """
    _check_prunes(plan, "an ordered list")
    if plan.scores is None:
        raise PlanError(f"the plan of '{plan.method}' has no scores to order experts by; write another format")
    lines = []
    for row, (layer, (experts, kept)) in enumerate(zip(plan.layout.layers, _layers(plan), strict=True)):
        gone = ~np.isin(np.arange(experts), kept)
        order = np.lexsort((np.arange(experts), -plan.scores[row, :experts], gone))
        lines.append(json.dumps({str(layer): order.tolist()}) + "\n")
    return "".join(lines)


def _plan(
    kept: Kept, layout: MoELayout, source: str, router_groups: RouterGroups, scores_LE: FloatArray | None = None
) -> CompressionPlan:
    groups = tuple(pruning_groups(experts) for experts in kept)
    return CompressionPlan(layout, groups, source, scores_LE, router_groups=router_groups)


def _layers(plan: CompressionPlan) -> list[tuple[int, tuple[int, ...]]]:
    return list(zip(plan.layout.num_experts, plan.kept, strict=True))


def _parse(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the {what} is no JSON: {error}; take the file as it was published") from error


def _distinct(experts: Any, count: int, where: str) -> list[int]:
    if (
        not isinstance(experts, list)
        or not all(type(expert) is int and 0 <= expert < count for expert in experts)
        or len(set(experts)) != len(experts)
    ):
        raise PlanError(
            f"{where} is not a list of different experts in 0..{count - 1}; take the list of this model"
        )
    return experts


def _check_prunes(plan: CompressionPlan, what: str) -> None:
    if not plan.is_pruning:
        raise PlanError(
            f"the plan of '{plan.method}' merges experts, which {what} cannot say; export a plan that only prunes"
        )
