"""Stage 4b, tune (optional): train what is left of the model on its domain's text, and write it as it was."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.evaluation.benchmarks import BenchmarkRequest
from moe_compress.pipelines.evaluate import evaluate_model
from moe_compress.pipelines.parameters import DomainParameters, EvaluateParameters
from moe_compress.pipelines.run_keys import evaluated_tasks
from moe_compress.reporting.tuning import TuningReport
from moe_compress.tuning.settings import TuneSettings
from moe_compress.types import (
    CheckpointReference,
    CompressionPlan,
    Demonstrations,
    EvaluationResult,
    TuningRecord,
    digest_of,
)

DONE = "done"
"""A file that tells which tunings' folders hold nothing to go on from."""


def tune_checkpoint(
    checkpoint: CheckpointReference,
    base_model: CheckpointReference,
    plan: CompressionPlan,
    public: BenchmarkRequest,
    domains_folder: Path,
    tune_folder: Path,
    settings: TuneSettings,
    evaluate: EvaluateParameters,
    own: DomainParameters,
    *demonstrations: Demonstrations,
) -> tuple[CheckpointReference | CheckpointRewrite, tuple[TuningRecord, ...]]:
    """Return the tuned checkpoint, which the dataset then streams to disk, and how tuning went.

    Where nothing is to be tuned, the pruned checkpoint is the candidate, and nothing is loaded.

    Raises:
        MoeCompressError: see `tuning.tune.tune`; or if a value has no place in the checkpoint.
    """
    if settings.steps == 0:
        return checkpoint, ()
    import torch

    from moe_compress.checkpoint.index import read_index
    from moe_compress.checkpoint.values import plan_values
    from moe_compress.collection.estimate import free_device_bytes
    from moe_compress.families.derive import derive_layout
    from moe_compress.tuning.texts import leave_out_measured
    from moe_compress.tuning.tune import Pruned, tune

    index = read_index(checkpoint.path)
    texts = find_texts(demonstrations, settings)
    kept = leave_out_measured(texts, find_measured(domains_folder, evaluate, own, public))
    settings = settings.model_copy(update={"device": choose_device(settings.device)})
    key = digest_of([checkpoint.identity, base_model.identity, kept, settings.model_dump()])
    work = tune_folder / own.name / key[:16]
    tuned = tune(
        Pruned(checkpoint.path, index.config, derive_layout(index.config, index.shapes)),
        (base_model.path, read_index(base_model.path).config),
        kept,
        len(texts) - len(kept),
        settings,
        work,
        free_device_bytes(torch.device(settings.device)),
    )
    rewrite = plan_values(index, tuned.folder, tuned.tied, work / "staged", plan.digest)
    (work / DONE).touch()
    return rewrite, (tuned.record,)


def remove_finished(folder: Path) -> None:
    """Remove the folders of a domain's tunings that are done; to be called when their checkpoints are published."""
    for done in folder.glob(f"*/{DONE}"):
        shutil.rmtree(done.parent)


def choose_device(asked: str) -> str:
    """Return the device to tune on."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def find_texts(demonstrations: Sequence[Demonstrations], settings: TuneSettings) -> list[str]:
    """Return the texts that might be tuned on, no two alike: demonstrations of every target, and the file named."""
    from moe_compress.evaluation.heldout import read_texts

    texts = [text for each in demonstrations for text in each.texts]
    if settings.text is not None:
        texts += read_texts(Path(settings.text), None, settings.seed)
    return list(dict.fromkeys(texts))


def find_measured(
    domains_folder: Path, evaluate: EvaluateParameters, own: DomainParameters, public: BenchmarkRequest
) -> list[str]:
    """Return what the model is measured with: all of every task that is evaluated, not only what this run drew."""
    from moe_compress.evaluation.heldout import read_heldout
    from moe_compress.evaluation.tasks import read_items

    names = evaluated_tasks(evaluate.tasks, own.targets)
    files = [domains_folder / name / "benchmark.jsonl" for name in names]
    measured = [item.question for file in files for item in read_items(file)]
    for texts in read_heldout(domains_folder, names, None, evaluate.seed).values():
        measured += texts
    if public.benchmarks:
        from moe_compress.evaluation.public import read_phrases

        measured += read_phrases(public)
    return measured


def evaluate_pruned(
    checkpoint: CheckpointReference,
    candidate_checkpoint: CheckpointReference,
    candidate: EvaluationResult,
    domains_folder: Path,
    answers_folder: Path,
    parameters: EvaluateParameters,
    own: DomainParameters,
    public: BenchmarkRequest,
) -> EvaluationResult:
    """Return the evaluation of the pruned model before it was tuned; the candidate's own if they are the same."""
    if checkpoint.identity == candidate_checkpoint.identity:
        return candidate
    return evaluate_model(checkpoint, domains_folder, answers_folder, parameters, own, candidate, public)


def compare_tuned(
    tuning: Sequence[TuningRecord],
    baseline: EvaluationResult,
    pruned: EvaluationResult,
    candidate: EvaluationResult,
    seed: int,
) -> tuple[TuningReport, ...]:
    """Return what tuning brought, if anything was tuned."""
    from moe_compress.evaluation.compare import compare_results

    return tuple(
        TuningReport(
            record,
            pruned,
            lost=compare_results(baseline, pruned, seed=seed),
            regained={} if candidate.fault else compare_results(pruned, candidate, seed=seed),
        )
        for record in tuning
    )


def create_pipeline(demonstrations: Sequence[str] = ("demonstrations",)) -> Pipeline:
    """Return the stage: pruned checkpoint -> candidate checkpoint, and what tuning brought.

    Args:
        demonstrations: those of every domain the model is compressed for.
    """
    measured_with = ["domains_folder", "answers_folder", "params:evaluate", "params:domain", "benchmark_request"]
    return Pipeline(
        [
            Node(
                tune_checkpoint,
                [
                    "pruned_checkpoint",
                    "base_model",
                    "plan",
                    "benchmark_request",
                    "domains_folder",
                    "tune_folder",
                    "params:tune",
                    "params:evaluate",
                    "params:domain",
                    *demonstrations,
                ],
                ["candidate_checkpoint", "tuning"],
                name="tune_checkpoint",
            ),
            Node(
                evaluate_pruned,
                ["pruned_checkpoint", "candidate_checkpoint", "candidate_evaluation", *measured_with],
                "pruned_evaluation",
                name="evaluate_pruned",
            ),
            Node(
                compare_tuned,
                [
                    "tuning",
                    "baseline_evaluation",
                    "pruned_evaluation",
                    "candidate_evaluation",
                    "params:evaluate.seed",
                ],
                "tuned",
                name="compare_tuned",
            ),
        ]
    )
