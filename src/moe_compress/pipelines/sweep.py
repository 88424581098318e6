"""The sweep: methods x budgets from one collection, tried under a router mask; the smallest that passes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Node, Pipeline

from moe_compress import methods
from moe_compress.datasets.keyed import KEY_LENGTH
from moe_compress.errors import GateFailedError, ParameterError
from moe_compress.gates.decide import GateSpec, decide, describe_failure, parse_gates
from moe_compress.pipelines.digests import source
from moe_compress.pipelines.measure import finite_only
from moe_compress.pipelines.parameters import (
    CollectParameters,
    DomainParameters,
    EvaluateParameters,
    RewriteParameters,
    SelectParameters,
    SweepParameters,
)
from moe_compress.pipelines.requests import find_sweep_requests
from moe_compress.pipelines.run_keys import evaluated_tasks
from moe_compress.pipelines.trials import MASKED_METRICS, Bench, Key
from moe_compress.types import (
    CheckpointReference,
    CompressionPlan,
    Demonstrations,
    ExpertStatistics,
    GateReport,
    MoELayout,
    Provenance,
    SweepEntry,
    SweepResult,
    choose_smallest,
    digest_of,
)

if TYPE_CHECKING:
    from moe_compress.evaluation.sweep import Round

logger = logging.getLogger(__name__)


def collect_for_sweep(
    base_model: CheckpointReference,
    parameters: CollectParameters,
    sweep: SweepParameters,
    folder: Path,
    layout: MoELayout,
    demonstrations: Demonstrations,
    lineage: Provenance,
    own: DomainParameters,
) -> ExpertStatistics:
    """Return the statistics that all methods of the sweep need; `layout` stands for a request that was checked."""
    from moe_compress.pipelines.collect import collect_domains

    name, requests = own.name, find_sweep_requests(sweep.methods, parameters.statistics)
    given = {name: demonstrations}, {name: lineage}, {name: requests}
    return collect_domains(base_model, parameters, *given, folder)[name]


def plan_sweep(
    statistics: ExpertStatistics,
    sweep: SweepParameters,
    shared: SelectParameters,
    own: DomainParameters,
    lineage: Provenance,
    statistics_report: GateReport,
) -> tuple[dict[Key, CompressionPlan], dict[str, str]]:
    """Return (method, fraction dropped) -> plan, and what cannot be tried -> why.

    `statistics_report` stands for statistics that passed their gates.

    Raises:
        ParameterError: if nothing is left to try.
    """
    from moe_compress.evaluation.sweep import why_not_masked

    chosen = own.selection(shared)
    plans, skipped = {}, {}
    for method in sweep.methods:
        for fraction in sweep.fractions_dropped:
            settings = {"method": method, "parameters": sweep.parameters.get(method, {})}
            tried = chosen.model_copy(update=settings | {"budget": chosen.budget.dropping(fraction)})
            budget = tried.budget.as_budget()
            try:
                plan = methods.plan(method, statistics, budget, tried.seed, tried.groups, tried.parameters)
            except ParameterError as error:
                skipped[f"{method} at {fraction:g}"] = str(error)
                continue
            reason = why_not_masked(plan)
            if reason and not (sweep.rewrite_merging and not plan.is_pruning):
                skipped[f"{method} at {fraction:g}"] = reason
                continue
            plans[method, fraction] = replace(plan, provenance={**lineage, **tried.as_provenance()})
    for name, reason in skipped.items():
        logger.warning("not tried: %s: %s", name, reason)
    if not plans:
        raise ParameterError(f"the sweep of '{own.name}' has nothing to try: {next(iter(skipped.values()))}")
    return plans, skipped


def try_plans(
    base_model: CheckpointReference,
    planned: tuple[Mapping[Key, CompressionPlan], Mapping[str, str]],
    domains_folder: Path,
    sweep_folder: Path,
    run_keys: Mapping[str, str],
    sweep: SweepParameters,
    evaluate: EvaluateParameters,
    rewrite: RewriteParameters,
    gates: Mapping[str, Mapping[str, Any]],
    own: DomainParameters,
    lineage: Provenance,
) -> SweepResult:
    """Return what every plan kept, and the smallest that passes the gates a mask can be put to.

    Raises:
        UnsupportedModelError: if the family's experts cannot be masked.
        EvaluationError: if a measurement is not a finite number.
    """
    plans, skipped = planned
    specs = parse_gates(own.gate_entries(gates))
    tasks = find_tasks(specs, evaluate, own.name)
    judged = [spec for spec in specs if is_judged(spec, tasks, own.name)]
    folder = sweep_folder / find_answers_key(run_keys["baseline"], sweep, rewrite)[:KEY_LENGTH]
    bench = Bench(base_model, tasks, domains_folder, folder, evaluate, rewrite, sweep.rewrite_merging)
    found = bench.halve(plans, sweep.rungs)
    entries = tuple(judge(key, plan, bench, found, judged, own.name) for key, plan in plans.items())
    chosen = choose_smallest(entries)
    return SweepResult(
        domain=own.name,
        **describe_base(bench, own.name),
        entries=entries,
        skipped=skipped,
        not_judged=tuple(spec.name for spec in specs if spec not in judged),
        chosen=chosen,
        check=None if chosen is None else bench.check(list(plans.values())[chosen]),
        provenance=lineage,
    )


def find_answers_key(baseline_key: str, sweep: SweepParameters, rewrite: RewriteParameters) -> str:
    """Return a key of all that a plan's answers depend on besides the plan.

    That is the base model and how models are evaluated, of plans that are written how they are, and not the rest of
    the sweep.
    """
    if not sweep.rewrite_merging:
        return baseline_key
    return digest_of([baseline_key, rewrite.model_dump(), source("checkpoint", "pipelines/rewrite.py")])


def find_tasks(specs: Sequence[GateSpec], evaluate: EvaluateParameters, domain: str) -> tuple[str, ...]:
    """Return the domain's own task, then those evaluated that a gate asks about."""
    asked = {part for spec in specs for part in spec.metric_of(domain).split(".")[1:]}
    others = (task for task in evaluated_tasks(evaluate.tasks, (domain,)) if task in asked and task != domain)
    return (domain, *others)


def describe_base(bench: Bench, domain: str) -> dict[str, Any]:
    """Return what a sweep's result says of the base model."""
    from moe_compress.evaluation.compare import wilson_interval

    items = bench.answer(None)[domain]
    right = sum(item.is_correct for item in items)
    return {
        "base_right": right,
        "num_items": len(items),
        "base_interval": wilson_interval(right, len(items)),
        "chance": sum(1 / len(item.log_likelihoods) for item in items) / len(items),
    }


def is_judged(spec: GateSpec, tasks: Sequence[str], domain: str) -> bool:
    """Return whether a gate can be put to a plan under a mask; the champion is a written model's rival.

    That rests on what the gate asks for, never on what was measured: what should have been and was not fails.
    """
    kind, *subject = spec.metric_of(domain).split(".")
    is_asked = not subject or subject[0] in (*tasks, "domain")
    return kind in MASKED_METRICS and is_asked and spec.reference != "champion"


def judge(
    key: Key, plan: CompressionPlan, bench: Bench, found: Round, judged: Sequence[GateSpec], domain: str
) -> SweepEntry:
    """Return what one plan kept, and which of the gates it does not pass if it stayed to the end."""
    from moe_compress.evaluation.compare import wilson_interval

    items = found.answers[key]
    right = sum(item.is_correct for item in items)
    stayed = key not in found.dropped_for
    measured = bench.measure(plan) if stayed else {}
    failures = decide(judged, measured, domain, baseline=bench.base_values).failures if stayed else ()
    return SweepEntry(
        method=key[0],
        fraction_dropped=key[1],
        experts=plan.new_layout.num_experts,
        plan_digest=plan.digest,
        size_ratio=bench.size(plan)["size_ratio"],
        num_items=len(items),
        num_right=right,
        interval=wilson_interval(right, len(items)),
        measured=finite_only(measured),
        failures=tuple(map(describe_failure, failures)),
        dropped_for=found.dropped_for.get(key),
    )


def publish_sweep(result: SweepResult, reporting_folder: Path, run_keys: Mapping[str, str]) -> Path:
    """Print the table of a sweep, draw it, and tell MLflow of each plan in a run of its own."""
    from moe_compress.registry.tracking import log_children, log_run
    from moe_compress.reporting.sweep import as_lines, save_figure

    folder = reporting_folder / result.domain / f"sweep-{run_keys['sweep'][:KEY_LENGTH]}"
    save_figure(result, folder / "sweep.png")
    logger.info("%s", "\n".join(as_lines(result)))
    log_children(
        {
            f"{entry.method} {entry.fraction_dropped:g}": (
                {"method": entry.method, "fraction_dropped": entry.fraction_dropped},
                {"accuracy": entry.accuracy, "size_ratio": entry.size_ratio, **entry.measured},
                {"plan_digest": entry.plan_digest, "passes": str(entry.passes).lower()},
            )
            for entry in result.entries
        }
    )
    log_run(params={}, metrics={}, tags={"sweep_choice": describe_choice(result)}, artifacts=[folder])
    return folder


def describe_choice(result: SweepResult) -> str:
    """Return what a sweep chose, in a few words."""
    choice = result.choice
    return f"{choice.method} at {choice.fraction_dropped:g}" if choice else "none"


def take_choice(
    result: SweepResult, planned: tuple[Mapping[Key, CompressionPlan], Mapping[str, str]], page: Path
) -> CompressionPlan:
    """Return the chosen plan, which `select.from: sweep` takes; `page` stands for a sweep that was shown.

    Raises:
        GateFailedError: if no plan passes.
    """
    choice = result.choice
    if choice is None:
        stayed = [entry for entry in result.entries if entry.dropped_for is None]
        nearest = min(stayed, key=lambda entry: (len(entry.failures), -entry.accuracy))
        raise GateFailedError(
            f"no plan of the sweep of '{result.domain}' passes its gates; nearest is {nearest.method} at "
            f"{nearest.fraction_dropped:g}: {nearest.failures[0]}; try smaller sweep.fractions_dropped or other "
            f"sweep.methods; see {page}"
        )
    return planned[0][choice.method, choice.fraction_dropped]


def create_pipeline() -> Pipeline:
    """Return the stage: (base model, demonstrations) -> result of the sweep, chosen plan."""
    request = ["layout", "demonstrations", "lineage", "params:domain"]
    return Pipeline(
        [
            Node(
                collect_for_sweep,
                ["base_model", "params:collect", "params:sweep", "collect_folder", *request],
                "sweep_statistics",
                name="collect_for_sweep",
            ),
            Node(
                plan_sweep,
                [
                    "sweep_statistics",
                    "params:sweep",
                    "params:select",
                    "params:domain",
                    "lineage",
                    "statistics_report",
                ],
                "sweep_plans",
                name="plan_sweep",
            ),
            Node(
                try_plans,
                [
                    "base_model",
                    "sweep_plans",
                    "domains_folder",
                    "sweep_folder",
                    "run_keys",
                    "params:sweep",
                    "params:evaluate",
                    "params:rewrite",
                    "params:gates",
                    "params:domain",
                    "lineage",
                ],
                "sweep",
                name="try_plans",
            ),
            Node(publish_sweep, ["sweep", "reporting_folder", "run_keys"], "sweep_page", name="publish_sweep"),
            Node(take_choice, ["sweep", "sweep_plans", "sweep_page"], "sweep_choice", name="take_choice"),
        ]
    )
