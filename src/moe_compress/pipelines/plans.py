"""What the plan commands find out: a plan of a file or a domain's newest run, described, compared and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kedro.config import OmegaConfigLoader
from kedro.utils import find_kedro_project

from moe_compress.errors import MoeCompressError, PlanError
from moe_compress.plans.document import read_document
from moe_compress.plans.formats import find_format, read_any
from moe_compress.plans.margins import compare_layers, describe_layers
from moe_compress.types import CompressionPlan, MoELayout, RouterGroups, TensorMap, as_json

if TYPE_CHECKING:
    from moe_compress.checkpoint.index import CheckpointIndex


@dataclass(frozen=True)
class PlanSource:
    """A plan and the file it was read from."""

    path: Path
    plan: CompressionPlan


def read_source(
    place: str, checkpoint: Path | None = None, groups: RouterGroups = "balanced", keep: int | None = None
) -> PlanSource:
    """Return the plan of a file, or the newest of a domain.

    Args:
        place: the file's path or the domain's name.
        checkpoint: the model it is for, which foreign formats do not say.
        groups: what becomes of a router's groups, which they do not say either.
        keep: experts of each layer that stay of an ordered list.

    Raises:
        PlanError: if there is no such plan, or something that its format does not say was not given.
    """
    path = find_plan(place)
    text = path.read_text(encoding="utf-8", errors="replace")
    if checkpoint is None and find_format(text, str(path)) == "plan":
        return PlanSource(path, read_document(text, str(path)))
    if checkpoint is None:
        raise PlanError(f"{path} does not say which model it is for; give the model's folder (--checkpoint)")
    from moe_compress.checkpoint.index import read_index
    from moe_compress.families.derive import derive_tensor_map

    index = read_index(checkpoint)
    layout = derive_tensor_map(index.config, index.shapes).layout
    return PlanSource(path, read_for(path, text, layout, groups, keep))


def read_for(path: Path, text: str, layout: MoELayout, groups: RouterGroups, keep: int | None) -> CompressionPlan:
    """Return the plan of a text in any format for a model of this layout."""

    def count() -> tuple[int, ...]:
        if keep is None:
            raise PlanError(f"{path} orders experts and does not say how many stay; give their number (--keep)")
        return (keep,) * len(layout.layers)

    return read_any(text, str(path), layout, groups, count)


def find_plan(place: str) -> Path:
    """Return the file of a plan: the path itself, or a domain's newest.

    Raises:
        PlanError: if there is neither.
    """
    from moe_compress.datasets.plan import find_newest

    if Path(place).is_file():
        return Path(place)
    newest = find_newest(plans_folder())
    if place not in newest:
        known = f"domains with a plan: {', '.join(sorted(newest))}" if newest else "no domain has a plan yet"
        raise PlanError(f"'{place}' is neither a file nor a domain with a plan; {known}")
    return newest[place]


def plans_folder() -> Path:
    """Return where this project's runs save their plans, as its catalog says."""
    from kedro.framework.project import settings

    root = find_kedro_project(Path.cwd()) or Path.cwd()
    loader = OmegaConfigLoader(str(root / settings.CONF_SOURCE), **settings.CONFIG_LOADER_ARGS)
    return root / str(loader["catalog"]["newest_plans"]["filepath"])


def describe(source: PlanSource) -> dict[str, Any]:
    """Return what there is to tell of a plan, ready for JSON."""
    plan = source.plan
    experts = [[list(group.members) for group in groups] for groups in plan.groups]
    layers = [
        {**described, "groups": groups} for described, groups in zip(describe_layers(plan), experts, strict=True)
    ]
    return {
        "path": os.path.relpath(source.path),
        "method": plan.method,
        "digest": plan.digest,
        "layout": as_json(plan.layout),
        "router_groups": plan.router_groups,
        "kept": sum(plan.new_layout.num_experts),
        "experts": sum(plan.layout.num_experts),
        "merges": not plan.is_pruning,
        "layers": layers,
        "provenance": dict(plan.provenance),
    }


def compare(one: PlanSource, other: PlanSource) -> dict[str, Any]:
    """Return how far two plans agree, layer by layer and over all, ready for JSON.

    Raises:
        PlanError: if they are for different models.
    """
    layers = compare_layers(one.plan, other.plan)
    both, either = (sum(layer[name] for layer in layers) for name in ("both", "either"))
    return {
        "plans": [{"path": os.path.relpath(each.path), "method": each.plan.method} for each in (one, other)],
        "same": one.plan.digest == other.plan.digest,
        "layers": layers,
        "kept": [sum(layer["kept"][index] for layer in layers) for index in (0, 1)],
        "both": both,
        "overlap": both / either,
        "mean_overlap": sum(layer["overlap"] for layer in layers) / len(layers),
        "same_groups": sum(layer["same_groups"] for layer in layers),
    }


def check_source(
    place: str, checkpoint: Path, groups: RouterGroups, keep: int | None, **options: Any
) -> dict[str, Any]:
    """Return whether a plan fits a checkpoint and what it makes of it, ready for JSON.

    Args:
        place: the plan's file or domain.
        checkpoint: the model's folder.
        groups: what becomes of a router's groups, where the file does not say.
        keep: experts of each layer that stay of an ordered list.
        options: `weights` and `mtp` of `plan_rewrite`.

    Raises:
        MoeCompressError: if there is no such plan or checkpoint, so that there is nothing to check.
    """
    from moe_compress.checkpoint.index import read_index
    from moe_compress.families.derive import derive_tensor_map

    path = find_plan(place)
    index = read_index(checkpoint)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    found = {"path": os.path.relpath(path), "checkpoint": str(checkpoint), "layout": as_json(tensor_map.layout)}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        plan = read_for(path, text, tensor_map.layout, groups, keep)
        return found | {"fits": True, "reason": None, **_outcome(index, tensor_map, plan, **options)}
    except MoeCompressError as error:
        return found | {"fits": False, "reason": str(error)}


def _outcome(
    index: CheckpointIndex,
    tensor_map: TensorMap,
    plan: CompressionPlan,
    weights: Literal["keep", "bfloat16"],
    mtp: Literal["prune", "drop"],
) -> Mapping[str, Any]:
    from moe_compress.checkpoint.rewrite import plan_rewrite
    from moe_compress.compatibility.judge import judge
    from moe_compress.families.verify import verify_checkpoint
    from moe_compress.pipelines.rewrite import describe_outcome

    layout: Literal["uniform", "per_layer"] = "uniform" if plan.new_layout.is_uniform else "per_layer"
    rewrite = plan_rewrite(index, tensor_map, plan, layout=layout, weights=weights, mtp=mtp)
    verify_checkpoint(rewrite.config, rewrite.shapes)
    return {
        "rewrite": {"layout": layout, "weights": weights, "mtp": mtp},
        "merges": not plan.is_pruning,
        "experts": [sum(each.num_experts) for each in (plan.layout, plan.new_layout)],
        "new_layout": as_json(plan.new_layout),
        "bytes": [sum((index.folder / file).stat().st_size for file in index.stamps), rewrite.num_bytes],
        "parameters": [sum(map(prod, shapes.values())) for shapes in (index.shapes, rewrite.shapes)],
        "engines": as_json(judge(describe_outcome(index, plan, weights))),
    }
