"""Stage 5, evaluate: the same measurements of baseline and candidate, under two namespaces of one pipeline."""

from __future__ import annotations

from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress.evaluation.benchmarks import BenchmarkRequest
from moe_compress.pipelines.benchmarks import prepare_benchmarks
from moe_compress.pipelines.parameters import DomainParameters, EvaluateParameters
from moe_compress.pipelines.run_keys import evaluated_tasks
from moe_compress.types import CheckpointReference, EvaluationResult


def evaluate_model(
    checkpoint: CheckpointReference,
    domains_folder: Path,
    parameters: EvaluateParameters,
    own: DomainParameters,
    checked: object,
    public: BenchmarkRequest,
) -> EvaluationResult:
    """Return benchmark items, held-out perplexity, freely written texts and size of one model.

    `checked` stands for a request that was checked, so that a wrong one fails before models load.

    Raises:
        DataError: if a task has no benchmark.
        EvaluationError: if the model answers with NaN.
    """
    from moe_compress.evaluation.evaluate import evaluate_checkpoint
    from moe_compress.evaluation.heldout import read_texts
    from moe_compress.evaluation.tasks import load_task

    names = evaluated_tasks(parameters.tasks, own.targets)
    tasks = [
        load_task(name, domains_folder / name / "benchmark.jsonl", parameters.limit, parameters.seed)
        for name in names
    ]
    heldout = {
        name: read_texts(domains_folder / name / "heldout.jsonl", parameters.heldout_limit, parameters.seed)
        for name in names
        if (domains_folder / name / "heldout.jsonl").is_file()
    }
    return evaluate_checkpoint(
        checkpoint.path,
        tasks,
        heldout,
        model=checkpoint.name,
        device=parameters.device,
        batch_size=parameters.batch_size,
        dtype=parameters.dtype,
        backend=parameters.backend,
        public=public,
        prompts=parameters.prompts,
        max_new_tokens=parameters.max_new_tokens,
        provenance={
            "checkpoint": checkpoint.name,
            "weights_digest": checkpoint.weights_digest,
            "settings_digest": checkpoint.settings_digest,
        },
    )


def create_pipeline(checked: str = "demonstrations") -> Pipeline:
    """Return the stage: (base model, candidate checkpoint) -> an evaluation of each.

    Args:
        checked: what is there once the request was checked.
    """
    measure = Pipeline(
        [
            Node(
                evaluate_model,
                [
                    "checkpoint",
                    "domains_folder",
                    "params:evaluate",
                    "params:domain",
                    "checked",
                    "benchmark_request",
                ],
                "evaluation",
                name="evaluate",
            )
        ]
    )
    parameters = {"params:evaluate", "params:domain"}
    shared = {
        "domains_folder": "domains_folder",
        "benchmark_request": "benchmark_request",
        "checked": checked,
    }
    models = {"baseline": "base_model", "candidate": "candidate_checkpoint"}
    return sum(
        (
            Pipeline(
                measure,
                namespace=role,
                inputs={"checkpoint": checkpoint, **shared},
                outputs={"evaluation": f"{role}_evaluation"},
                parameters=parameters,
            )
            for role, checkpoint in models.items()
        ),
        Pipeline(
            [
                Node(
                    prepare_benchmarks,
                    ["layout", "params:evaluate", "params:benchmarks", "params:domain"],
                    "benchmark_request",
                    name="prepare_benchmarks",
                )
            ]
        ),
    )
