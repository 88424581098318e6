"""Stage 6, gate: compare both models on the same items, and decide what may be released; never skipped."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kedro.pipeline import Node, Pipeline

from moe_compress.errors import RegistryAwayError
from moe_compress.gates.decide import GateSpec, decide, parse_gates, require
from moe_compress.pipelines.measure import Speeds, measure
from moe_compress.pipelines.parameters import DomainParameters
from moe_compress.types import (
    Agreement,
    EvaluationResult,
    ExpertStatistics,
    GateReport,
    Measurements,
    ProbeResult,
    TaskComparison,
)

logger = logging.getLogger(__name__)


def gate_statistics(
    statistics: ExpertStatistics,
    agreement: Sequence[Agreement],
    reporting_folder: Path,
    shared: Mapping[str, Mapping[str, Any]],
    own: DomainParameters,
) -> GateReport:
    """Return the outcome of each gate on statistics, before anything is planned from them.

    Raises:
        ParameterError: if a gate is not written as a gate.
        GateFailedError: if a critical gate failed; no model is rewritten then.
    """
    from moe_compress.gates.statistics import measure_statistics

    specs = parse_gates(own.gate_entries(shared, "statistics_gates"))
    return _gate(specs, measure_statistics(statistics, agreement), reporting_folder, own.name)


def gate_sums(
    reporting_folder: Path,
    shared: Mapping[str, Mapping[str, Any]],
    own: DomainParameters,
    *statistics: ExpertStatistics,
) -> GateReport:
    """Return the same where no single plan is made from one domain's statistics: for mixtures and sweeps.

    Gates on what two halves of the demonstrations agree on are left out; the worst domain is gated.

    Raises:
        ParameterError: if a gate is not written as a gate.
        GateFailedError: if a critical gate failed; no model is rewritten then.
    """
    from moe_compress.gates.statistics import measure_several

    specs = parse_gates(own.gate_entries(shared, "statistics_gates"))
    asked = tuple(spec for spec in specs if not spec.metric.startswith("split_half"))
    return _gate(asked, measure_several(statistics), reporting_folder, own.name)


def _gate(specs: Sequence[GateSpec], found: Measurements, reporting_folder: Path, domain: str) -> GateReport:
    if not specs:
        return GateReport(domain, ())
    from moe_compress.gates.expectations import record_gates

    report = decide(specs, found.values, domain, places=found.places)
    record = record_gates(report, reporting_folder / "gx", "statistics")
    require(report, os.path.relpath(record.data_docs), "statistics", "no model is rewritten")
    return report


def compare_models(baseline: EvaluationResult, candidate: EvaluationResult, seed: int) -> dict[str, TaskComparison]:
    """Return task -> both models on the same items, with intervals; nothing of a candidate that is broken."""
    from moe_compress.evaluation.compare import compare_results

    return {} if candidate.fault else compare_results(baseline, candidate, seed=seed)


def join_speeds(
    baseline: EvaluationResult, candidate: EvaluationResult, speeds: Speeds
) -> tuple[EvaluationResult, EvaluationResult]:
    """Return both evaluations with the speed at which the models read the largest batch that was timed."""
    if not speeds[0].prefill:
        return baseline, candidate
    before, after = (speed.prefill[max(speed.prefill)].tokens_per_second for speed in speeds)
    return replace(baseline, tokens_per_second=before), replace(candidate, tokens_per_second=after)


def measure_candidate(
    baseline: EvaluationResult,
    candidate: EvaluationResult,
    comparisons: Mapping[str, TaskComparison],
    probes: ProbeResult,
    speeds: Speeds,
    agreement: Sequence[Agreement],
    own: DomainParameters,
    seed: int,
) -> Measurements:
    """Return everything a gate may ask for; see `pipelines.measure`."""
    from moe_compress.evaluation.compare import compare_items, pool_items

    before, after = (pool_items(result, own.targets) for result in (baseline, candidate))
    pooled = {"pooled": compare_items(before, after, seed=seed)} if after else {}
    return measure(baseline, candidate, {**comparisons, **pooled}, probes, speeds, agreement, own.targets)


def decide_gates(
    measured: Measurements,
    earlier: GateReport,
    reporting_folder: Path,
    shared: Mapping[str, Mapping[str, Any]],
    own: DomainParameters,
) -> tuple[GateReport, Path]:
    """Return every gate's outcome, those on statistics first, and the Data Docs that record them.

    Raises:
        ParameterError: if a gate is not written as a gate.
        RegistryError: if a gate asks for the champion's values and MLflow refuses.
    """
    from moe_compress.gates.expectations import record_gates

    specs = parse_gates(own.gate_entries(shared))
    is_compared = any(spec.reference == "champion" for spec in specs)
    report = decide(
        specs,
        measured.values,
        own.name,
        baseline=measured.baseline,
        champion=_find_champion(own.registered_model) if is_compared else None,
        places=measured.places,
    )
    record = record_gates(report, reporting_folder / "gx")
    # Gates on statistics alone say nothing of the model.
    outcomes = (*earlier.outcomes, *report.outcomes) if report.outcomes else ()
    return GateReport(own.name, outcomes), record.data_docs


def _find_champion(model_name: str) -> dict[str, float] | None:
    """Return what the champion measured; nothing, which fails a gate, where the registry does not answer."""
    from moe_compress.registry.champion import read_champion

    try:
        return read_champion(model_name)
    except RegistryAwayError as error:
        logger.warning("limits relative to the champion of '%s' are not known: %s", model_name, error)
        return {}


def create_statistics_pipeline() -> Pipeline:
    """Return the gates on one domain's statistics: (statistics, agreement) -> their report."""
    inputs = ["statistics", "agreement", "reporting_folder", "params:statistics_gates", "params:domain"]
    return Pipeline([Node(gate_statistics, inputs, "statistics_report", name="gate_statistics")])


def create_sums_pipeline(statistics: Sequence[str]) -> Pipeline:
    """Return the gates on statistics that no single plan is made from: their names -> their report."""
    inputs = ["reporting_folder", "params:statistics_gates", "params:domain", *statistics]
    return Pipeline([Node(gate_sums, inputs, "statistics_report", name="gate_statistics")])


def create_pipeline() -> Pipeline:
    """Return the stage: two evaluations, probes, speeds -> comparisons, measured values, gate report."""
    evaluations = ["baseline", "candidate"]
    return Pipeline(
        [
            Node(
                join_speeds,
                ["baseline_evaluation", "candidate_evaluation", "speeds"],
                evaluations,
                name="join_speeds",
            ),
            Node(
                compare_models,
                [*evaluations, "params:evaluate.seed"],
                "comparisons",
                name="compare_models",
            ),
            Node(
                measure_candidate,
                [
                    *evaluations,
                    "comparisons",
                    "probes",
                    "speeds",
                    "agreement",
                    "params:domain",
                    "params:evaluate.seed",
                ],
                "measured",
                name="measure_candidate",
            ),
            Node(
                decide_gates,
                ["measured", "statistics_report", "reporting_folder", "params:gates", "params:domain"],
                ["gate_report", "gate_docs"],
                name="decide_gates",
            ),
        ]
    )
