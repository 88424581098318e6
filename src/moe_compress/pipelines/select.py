"""Stage 3, select: a method and a budget turn statistics into a plan; no model is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kedro.pipeline import Node, Pipeline

from moe_compress import methods
from moe_compress.pipelines.parameters import DomainParameters, SelectParameters
from moe_compress.types import Agreement, Budget, CompressionPlan, ExpertStatistics, GateReport, PlanBackground


def plan_experts(
    statistics: ExpertStatistics,
    budget: Budget,
    shared: SelectParameters,
    own: DomainParameters,
    lineage: Mapping[str, str],
    statistics_report: GateReport,
) -> CompressionPlan:
    """Return which experts of each layer stay; `statistics_report` stands for statistics that passed their gates.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the model, or is a size and the method does not keep to it.
    """
    chosen = own.selection(shared)
    plan = methods.plan(chosen.method, statistics, budget, chosen.seed, chosen.groups, chosen.parameters)
    if chosen.budget.find_size():
        methods.check_within(plan, budget)
    return replace(plan, provenance=lineage)


def measure_agreement(
    statistics: ExpertStatistics, budget: Budget, shared: SelectParameters, own: DomainParameters
) -> tuple[Agreement, ...]:
    """Return how far the plan depends on which demonstrations were seen; nothing where that cannot be told."""
    chosen = own.selection(shared)
    agreement = methods.measure_agreement(
        chosen.method, statistics, budget, chosen.seed, chosen.groups, chosen.parameters
    )
    return (agreement,) if agreement else ()


def describe_background(
    statistics: ExpertStatistics, budget: Budget, shared: SelectParameters, own: DomainParameters
) -> PlanBackground:
    """Return what the report draws of the statistics, small enough to be handed on."""
    chosen = own.selection(shared)
    return methods.describe_background(
        chosen.method, statistics, budget, chosen.seed, chosen.groups, chosen.parameters
    )


def create_pipeline() -> Pipeline:
    """Return the stage: (statistics, budget) -> chosen plan, agreement, background."""
    return Pipeline(
        [
            Node(
                plan_experts,
                ["statistics", "budget", "params:select", "params:domain", "lineage", "statistics_report"],
                "chosen_plan",
                name="plan_experts",
            ),
            Node(
                measure_agreement,
                ["statistics", "budget", "params:select", "params:domain"],
                "agreement",
                name="measure_agreement",
            ),
            Node(
                describe_background,
                ["statistics", "budget", "params:select", "params:domain"],
                "background",
                name="describe_background",
            ),
        ]
    )
