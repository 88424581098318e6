"""Stage 6, gate: compare both models on the same items, and decide what may be released; never skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kedro.pipeline import Node, Pipeline

from moe_compress.pipelines.parameters import DomainParameters, EvaluateParameters
from moe_compress.types import Agreement, CheckpointReference, EvaluationResult, GateReport, TaskComparison

HIGHER_IS_BETTER = frozenset({"accuracy", "difference", "share_kept"})
"""Of what is measured per task; of anything else less is better."""


def time_models(
    baseline: EvaluationResult,
    candidate: EvaluationResult,
    base_model: CheckpointReference,
    checkpoint: CheckpointReference,
    parameters: EvaluateParameters,
) -> tuple[EvaluationResult, EvaluationResult]:
    """Return both evaluations with the models' speeds, timed in turns in this very run."""
    from moe_compress.evaluation.loading import load_stock
    from moe_compress.evaluation.throughput import measure_prefill_speeds

    models = [
        load_stock(reference.path, parameters.device, parameters.dtype).model
        for reference in (base_model, checkpoint)
    ]
    before, after = measure_prefill_speeds(models)
    return replace(baseline, tokens_per_second=before), replace(candidate, tokens_per_second=after)


def compare_models(baseline: EvaluationResult, candidate: EvaluationResult, seed: int) -> dict[str, TaskComparison]:
    """Return task -> both models on the same items, with intervals."""
    from moe_compress.evaluation.compare import compare_results

    return compare_results(baseline, candidate, seed=seed)


def measure_candidate(
    baseline: EvaluationResult,
    candidate: EvaluationResult,
    comparisons: Mapping[str, TaskComparison],
    agreement: Sequence[Agreement],
    own: DomainParameters,
) -> dict[str, float]:
    """Return everything a gate may ask for, metric name -> value.

    Per task and for `domain`, the worst of those compressed for: `accuracy.*`, `share_kept.*` (of the accuracy
    above chance), `difference.*`, `perplexity_ratio.*`, `loops_added.*`, `length_ratio.*`. Of the whole:
    `size_ratio`, `parameter_ratio`, `speed_ratio`, `missing_keys`, `unexpected_keys`. Of two halves of the
    demonstrations, where there are: `split_half_jaccard`, `split_half_spearman`.
    """
    measured = {
        "size_ratio": candidate.num_bytes / baseline.num_bytes,
        "parameter_ratio": candidate.num_parameters / baseline.num_parameters,
        "speed_ratio": candidate.tokens_per_second / baseline.tokens_per_second,
        "missing_keys": float(candidate.provenance["missing_keys"]),
        "unexpected_keys": float(candidate.provenance["unexpected_keys"]),
    }
    for found in agreement:
        measured |= found.as_metrics()
    for task, comparison in comparisons.items():
        measured |= {
            f"accuracy.{task}": comparison.candidate_accuracy,
            f"share_kept.{task}": comparison.share_kept,
            f"difference.{task}": comparison.difference,
        }
    for task, perplexity in candidate.perplexities.items():
        measured[f"perplexity_ratio.{task}"] = perplexity / baseline.perplexities[task]
    measured |= measure_writing(baseline, candidate)
    return measured | measure_worst(measured, own.targets)


def measure_worst(measured: Mapping[str, float], targets: Sequence[str]) -> dict[str, float]:
    """Return each metric that all domains compressed for have, as `<metric>.domain`: the worst of their values."""
    worst = {}
    for metric in dict.fromkeys(name.partition(".")[0] for name in measured if "." in name):
        values = [measured.get(f"{metric}.{target}") for target in targets]
        if None not in values:
            pick = np.min if metric in HIGHER_IS_BETTER else np.max
            worst[f"{metric}.domain"] = float(pick(np.array(values, dtype=np.float64)))
    return worst


def measure_writing(baseline: EvaluationResult, candidate: EvaluationResult) -> dict[str, float]:
    """Return per task how free writing changed.

    `loops_added.*` is the share of texts that end going in circles, candidate minus baseline; `length_ratio.*` is
    the mean length, candidate over baseline.
    """
    from moe_compress.reporting.writing import compare_writing

    measured = {}
    for row in compare_writing(baseline, candidate):
        measured[f"loops_added.{row.task}"] = row.loops[1] - row.loops[0]
        measured[f"length_ratio.{row.task}"] = row.length[1] / row.length[0] if row.length[0] else float("nan")
    return measured


def decide_gates(
    measured: Mapping[str, float],
    reporting_folder: Path,
    shared: Mapping[str, Mapping[str, Any]],
    own: DomainParameters,
) -> tuple[GateReport, Path]:
    """Return every gate's outcome and the Data Docs that record it.

    Raises:
        ParameterError: if a gate is not written as a gate.
    """
    from moe_compress.gates.decide import decide, parse_gates
    from moe_compress.gates.expectations import record_gates

    gates = parse_gates(own.gate_entries(shared))
    record = record_gates(gates, measured, own.name, reporting_folder / "gx")
    return decide(gates, measured, own.name), record.data_docs


def create_pipeline() -> Pipeline:
    """Return the stage: two evaluations -> comparisons, measured values, gate report."""
    evaluations = ["baseline", "candidate"]
    return Pipeline(
        [
            Node(
                time_models,
                [
                    "baseline_evaluation",
                    "candidate_evaluation",
                    "base_model",
                    "candidate_checkpoint",
                    "params:evaluate",
                ],
                evaluations,
                name="time_models",
            ),
            Node(
                compare_models,
                [*evaluations, "params:evaluate.seed"],
                "comparisons",
                name="compare_models",
            ),
            Node(
                measure_candidate,
                [*evaluations, "comparisons", "agreement", "params:domain"],
                "measured",
                name="measure_candidate",
            ),
            Node(
                decide_gates,
                ["measured", "reporting_folder", "params:gates", "params:domain"],
                ["gate_report", "gate_docs"],
                name="decide_gates",
            ),
        ]
    )
