"""Stage 5, further: set the candidate beside the base where no question is asked, and time both."""

from __future__ import annotations

from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress.pipelines.parameters import DomainParameters, EvaluateParameters
from moe_compress.pipelines.run_keys import evaluated_tasks
from moe_compress.types import (
    UNTIMED,
    CheckpointReference,
    CompressionPlan,
    EvaluationResult,
    ProbeResult,
    Throughput,
)


def probe_candidate(
    base_model: CheckpointReference,
    pruned: CheckpointReference,
    checkpoint: CheckpointReference,
    candidate: EvaluationResult,
    plan: CompressionPlan,
    domains_folder: Path,
    parameters: EvaluateParameters,
    own: DomainParameters,
) -> ProbeResult:
    """Return how the candidate's predictions and routing differ from the base's on held-out text.

    Raises:
        NotFiniteError: if the base predicts what is no finite number.
    """
    from moe_compress.evaluation.heldout import read_heldout
    from moe_compress.evaluation.probing import probe

    if candidate.fault:
        return ProbeResult(left_out="the candidate could not be evaluated")
    names = evaluated_tasks(parameters.tasks, own.targets)
    texts = read_heldout(domains_folder, names, parameters.heldout_limit, parameters.seed)
    return probe(
        base_model.path,
        checkpoint.path,
        plan,
        texts,
        own.targets,
        rewritten=pruned.path if pruned.identity != checkpoint.identity else None,
        device=parameters.device,
        dtype=parameters.dtype,
    )


def time_models(
    base_model: CheckpointReference, checkpoint: CheckpointReference, parameters: EvaluateParameters
) -> tuple[Throughput, Throughput]:
    """Return how fast both models load, read and write, each alone in a process of its own, one after the other.

    Without batch sizes nothing is timed.
    """
    if not parameters.batch_sizes:
        return UNTIMED, UNTIMED
    from moe_compress.evaluation.footprint import measure_throughput

    before, after = (
        measure_throughput(reference.path, parameters.batch_sizes, parameters.device, parameters.dtype)
        for reference in (base_model, checkpoint)
    )
    return before, after


def create_pipeline() -> Pipeline:
    """Return the stage: (base model, candidate checkpoint, plan) -> probes, speeds."""
    return Pipeline(
        [
            Node(
                probe_candidate,
                [
                    "base_model",
                    "pruned_checkpoint",
                    "candidate_checkpoint",
                    "candidate_evaluation",
                    "plan",
                    "domains_folder",
                    "params:evaluate",
                    "params:domain",
                ],
                "probes",
                name="probe_candidate",
            ),
            Node(
                time_models,
                ["base_model", "candidate_checkpoint", "params:evaluate"],
                "speeds",
                name="time_models",
            ),
        ]
    )
