"""A plan as a JSON document that a person can read, a line per layer, and back; its digest tells later changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moe_compress.errors import PlanError
from moe_compress.plans.margins import describe_layers
from moe_compress.types import CompressionPlan, ExpertGroup, RouterNoise, as_json, layout_from_json

VERSION = 2
"""What `format` says in a document written today; documents without it hold groups and scores in whole columns."""


def write_document(plan: CompressionPlan) -> str:
    """Return the plan as JSON.

    `layers` has a line per layer with its groups: a number for an expert that stays alone, `{expert: weight}` for
    experts that merge. Counts and margins stand there to be read and are not read back; `scores` are.
    """
    head = {
        "format": VERSION,
        "method": plan.method,
        "digest": plan.digest,
        "router_groups": plan.router_groups,
        "align_neurons": plan.align_neurons,
        "router_noise": as_json(plan.router_noise),
        "layout": as_json(plan.layout),
    }
    layers = (
        {**described, "groups": [_write_group(group) for group in groups]}
        for described, groups in zip(describe_layers(plan), plan.groups, strict=True)
    )
    provenance = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in plan.provenance.items())
    parts = [
        *(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()),
        f'"provenance": {{\n{provenance}\n}}',
        f'"layers": {_lines(layers)}',
        f'"scores": {"null" if plan.scores is None else _lines(plan.scores.tolist())}',
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(rows: Iterable[Any]) -> str:
    return "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]"


def _write_group(group: ExpertGroup) -> int | dict[str, float]:
    if group.weights == (1.0,):
        return group.members[0]
    return {str(member): weight for member, weight in zip(group.members, group.weights, strict=True)}


def read_document(text: str, where: str) -> CompressionPlan:
    """Return the plan of a JSON document of this version or an older one.

    Args:
        text: the document.
        where: what it is called in messages.

    Raises:
        PlanError: if it is no such document, or its groups are not those its digest was made from.
    """
    try:
        content = json.loads(text)
        if content.get("format", 1) not in (1, VERSION):
            raise PlanError(
                f"{where} is a plan of format {content['format']}, and this version reads up to {VERSION}; use the "
                "version that wrote it"
            )
        plan = _read_plan(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError(
            f"{where} is no plan of this package ({type(error).__name__}: {error}); take the plan.json of a run"
        ) from error
    if plan.digest != content.get("digest"):
        raise PlanError(
            f"{where} was changed after it was planned: its digest is {str(content.get('digest'))[:12]}, "
            f"its groups give {plan.digest[:12]}; delete the file and run again"
        )
    return plan


def _read_plan(content: Mapping[str, Any]) -> CompressionPlan:
    is_old = "layers" not in content
    rows = content["groups"] if is_old else [layer["groups"] for layer in content["layers"]]
    read = _read_old_group if is_old else _read_group
    return CompressionPlan(
        layout=layout_from_json(content["layout"]),
        groups=tuple(tuple(map(read, row)) for row in rows),
        method=content["method"],
        scores=None if content["scores"] is None else np.array(content["scores"], dtype=np.float64),
        provenance={**content["provenance"]},
        router_groups=content.get("router_groups", "balanced"),
        align_neurons=content.get("align_neurons", False),
        router_noise=RouterNoise(**noise) if (noise := content.get("router_noise")) else None,
    )


def _read_group(value: int | Mapping[str, float]) -> ExpertGroup:
    if isinstance(value, int):
        return ExpertGroup((value,))
    return ExpertGroup(tuple(int(member) for member in value), tuple(value.values()))


def _read_old_group(value: Mapping[str, list[float]]) -> ExpertGroup:
    return ExpertGroup(tuple(int(member) for member in value["members"]), tuple(value["weights"]))
