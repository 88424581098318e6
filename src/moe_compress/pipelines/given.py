"""Stages 1 and 3 of a plan that is given instead of made (`select.from`): check it, and say where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.pipelines.budget import resolve_budget
from moe_compress.pipelines.data import demonstrations_node
from moe_compress.pipelines.digests import file_digest
from moe_compress.pipelines.given_plan import find_given
from moe_compress.pipelines.lineage import describe_run
from moe_compress.pipelines.parameters import DomainParameters, RewriteParameters, SelectParameters
from moe_compress.plans.formats import read_any
from moe_compress.types import (
    Agreement,
    CheckpointReference,
    CompressionPlan,
    GateReport,
    MoELayout,
    PlanBackground,
)


def check_given(
    base_model: CheckpointReference, select: SelectParameters, own: DomainParameters, rewrite: RewriteParameters
) -> tuple[MoELayout, CompressionPlan]:
    """Return the base model's layout and the plan that is given, after checking that they fit; reads names only.

    Raises:
        ParameterError: if no plan is given, or it is an ordered list and the budget does not fit the model.
        PlanError: if it is no plan, or one for another model or for another way to write it.
        UnsupportedModelError: if the architecture's experts cannot be told.
    """
    from moe_compress.checkpoint.index import read_index
    from moe_compress.checkpoint.rewrite import check_plan
    from moe_compress.families.derive import derive_tensor_map

    chosen = own.selection(select)
    path = find_given(chosen, own.name)
    if path is None:
        raise ParameterError(
            f"apply_{own.name} carries out a plan that is given, and select.from is null; give its path there, or "
            f"run prune_{own.name}"
        )
    index = read_index(base_model.path)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    limits = tensor_map.layout.flattened if chosen.groups == "flatten" else tensor_map.layout

    def count() -> tuple[int, ...]:
        return methods.experts_to_keep(resolve_budget(chosen, rewrite, index, tensor_map), limits)

    plan = read_any(read_text(path), str(path), tensor_map.layout, chosen.groups, count)
    check_plan(tensor_map, plan, set(index.tensors), rewrite.layout, rewrite.weights, rewrite.mtp)
    return tensor_map.layout, plan


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        ParameterError: if it has none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path} is no text, so it holds no plan; give the path of a plan") from error


def record_lineage(
    base_model: CheckpointReference,
    given_plan: CompressionPlan,
    run_keys: Mapping[str, str],
    domains_folder: Path,
    select: SelectParameters,
    own: DomainParameters,
) -> dict[str, str]:
    """Return what the run's outputs come from: the plan's file, and what it says itself of where it came from."""
    path = find_given(own.selection(select), own.name)
    assert path is not None
    origin = {
        "method": given_plan.method,
        "plan_from": str(path),
        "plan_file_digest": file_digest(path),
        **{f"plan_from.{name}": value for name, value in given_plan.provenance.items()},
    }
    return describe_run(base_model, origin, run_keys, domains_folder, own)


def take_plan(
    given_plan: CompressionPlan, lineage: Mapping[str, str], select: SelectParameters, own: DomainParameters
) -> CompressionPlan:
    """Return the plan that was given, with this run's lineage.

    Raises:
        ParameterError: if it is the choice of a sweep over another base model.
    """
    made_for = given_plan.provenance.get("base_weights_digest")
    if own.selection(select).source == "sweep" and made_for != lineage["base_weights_digest"]:
        raise ParameterError(
            f"the newest sweep of '{own.name}' was of another base model ({str(made_for)[:12]}); run "
            f"kedro run --pipelines=sweep_{own.name} for this one"
        )
    return replace(given_plan, provenance=lineage)


def tell_no_background() -> tuple[tuple[Agreement, ...], PlanBackground]:
    """Return that nothing is known of how far a given plan depends on its demonstrations, nor of what it saw."""
    return (), PlanBackground()


def tell_no_statistics(own: DomainParameters) -> GateReport:
    """Return that there are no statistics to put to gates."""
    return GateReport(own.name, ())


def create_pipeline() -> Pipeline:
    """Return the stages: (base model, plan's file, rows) -> layout, demonstrations, lineage, chosen plan."""
    return Pipeline(
        [
            Node(
                check_given,
                ["base_model", "params:select", "params:domain", "params:rewrite"],
                ["layout", "given_plan"],
                name="check_given",
            ),
            demonstrations_node(),
            Node(
                record_lineage,
                ["base_model", "given_plan", "run_keys", "domains_folder", "params:select", "params:domain"],
                "lineage",
                name="record_lineage",
            ),
            Node(
                take_plan,
                ["given_plan", "lineage", "params:select", "params:domain"],
                "chosen_plan",
                name="take_plan",
            ),
            Node(tell_no_background, None, ["agreement", "background"], name="tell_no_background"),
            Node(tell_no_statistics, "params:domain", "statistics_report", name="tell_no_statistics"),
        ]
    )
