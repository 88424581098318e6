"""Stage 5, evaluate: the same measurements of baseline and candidate, under two namespaces of one pipeline."""

from __future__ import annotations

from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress.datasets.keyed import KEY_LENGTH
from moe_compress.evaluation.benchmarks import BenchmarkRequest
from moe_compress.pipelines.benchmarks import prepare_benchmarks
from moe_compress.pipelines.digests import source, versions
from moe_compress.pipelines.parameters import DomainParameters, EvaluateParameters
from moe_compress.pipelines.run_keys import evaluated_tasks
from moe_compress.types import CheckpointReference, EvaluationResult, digest_of


def evaluate_model(
    checkpoint: CheckpointReference,
    domains_folder: Path,
    answers_folder: Path,
    parameters: EvaluateParameters,
    own: DomainParameters,
    checked: object,
    public: BenchmarkRequest,
) -> EvaluationResult:
    """Return benchmark items, held-out perplexity, freely written texts and size of one model.

    `checked` stands for a request that was checked, so that a wrong one fails before models load. What public
    benchmarks are answered is kept in `answers_folder` at once, so that an evaluation that was stopped goes on.

    Raises:
        DataError: if a task has no benchmark.
        EvaluationError: if the model answers with NaN.
    """
    from moe_compress.evaluation.evaluate import evaluate_checkpoint
    from moe_compress.evaluation.heldout import read_heldout
    from moe_compress.evaluation.tasks import load_task

    names = evaluated_tasks(parameters.tasks, own.targets)
    tasks = [
        load_task(name, domains_folder / name / "benchmark.jsonl", parameters.limit, parameters.seed)
        for name in names
    ]
    return evaluate_checkpoint(
        checkpoint.path,
        tasks,
        read_heldout(domains_folder, names, parameters.heldout_limit, parameters.seed),
        model=checkpoint.name,
        device=parameters.device,
        batch_size=parameters.batch_size,
        dtype=parameters.dtype,
        backend=parameters.backend,
        public=public,
        answers=answers_folder / own.name / find_answers_key(checkpoint, parameters, public)[:KEY_LENGTH],
        prompts=parameters.prompts,
        max_new_tokens=parameters.max_new_tokens,
        provenance={
            "checkpoint": checkpoint.name,
            "weights_digest": checkpoint.weights_digest,
            "settings_digest": checkpoint.settings_digest,
        },
    )


def evaluate_candidate(
    checkpoint: CheckpointReference,
    domains_folder: Path,
    answers_folder: Path,
    parameters: EvaluateParameters,
    own: DomainParameters,
    checked: object,
    public: BenchmarkRequest,
) -> EvaluationResult:
    """Return the same of a candidate; one that gives no numbers is told as such, for gates to judge."""
    from moe_compress.errors import NotFiniteError
    from moe_compress.evaluation.throughput import measure_size

    try:
        return evaluate_model(checkpoint, domains_folder, answers_folder, parameters, own, checked, public)
    except NotFiniteError as error:
        size = measure_size(checkpoint.path)
        provenance = {"checkpoint": checkpoint.name, "weights_digest": checkpoint.weights_digest}
        return EvaluationResult(checkpoint.name, (), {}, *size, provenance=provenance, fault=str(error))


def find_answers_key(
    checkpoint: CheckpointReference, parameters: EvaluateParameters, public: BenchmarkRequest
) -> str:
    """Return a key of all that a model's answers to public benchmarks depend on."""
    asked = {name: benchmark.model_dump() for name, benchmark in public.benchmarks.items()}
    libraries = {each.problems.replace("_", "-") for each in public.benchmarks.values() if each.problems}
    return digest_of(
        [
            *[checkpoint.identity, parameters.model_dump(), asked],
            source("evaluation", "families", "loading.py", "pipelines/evaluate.py"),
            versions("torch", "transformers", "lm-eval", "vllm", *sorted(libraries)),
        ]
    )


def create_pipeline(checked: str = "demonstrations") -> Pipeline:
    """Return the stage: (base model, candidate checkpoint) -> an evaluation of each.

    Args:
        checked: what is there once the request was checked.
    """
    parameters = ("params:evaluate", "params:domain")
    inputs = ["checkpoint", "domains_folder", "answers_folder", *parameters, "checked", "benchmark_request"]
    shared = {name: name for name in ("domains_folder", "answers_folder", "benchmark_request")}
    models = {
        "baseline": (evaluate_model, "base_model"),
        "candidate": (evaluate_candidate, "candidate_checkpoint"),
    }
    return sum(
        (
            Pipeline(
                [Node(function, inputs, "evaluation", name="evaluate")],
                namespace=role,
                inputs={"checkpoint": checkpoint, "checked": checked, **shared},
                outputs={"evaluation": f"{role}_evaluation"},
                parameters=set(parameters),
            )
            for role, (function, checkpoint) in models.items()
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
