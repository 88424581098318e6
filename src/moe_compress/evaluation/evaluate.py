"""Measure everything there is to know of one checkpoint, loading it once per backend."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moe_compress.errors import ParameterError
from moe_compress.evaluation.benchmarks import BenchmarkRequest
from moe_compress.evaluation.finite import check_weights
from moe_compress.evaluation.harness import ask_tasks
from moe_compress.evaluation.language_models import open_transformers, open_vllm
from moe_compress.evaluation.loading import StockModel, load_stock
from moe_compress.evaluation.perplexity import measure_perplexities
from moe_compress.evaluation.probes import write_freely
from moe_compress.evaluation.public import ask_benchmarks
from moe_compress.evaluation.tasks import BenchmarkTask
from moe_compress.evaluation.throughput import measure_size
from moe_compress.loading import name_loader
from moe_compress.types import EvaluationResult, ItemResult, Provenance, digest_of


def evaluate_checkpoint(
    folder: Path | str,
    tasks: Sequence[BenchmarkTask],
    heldout: Mapping[str, Sequence[str]],
    *,
    model: str = "candidate",
    backend: str = "hf",
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 64,
    prompts: int = 0,
    max_new_tokens: int = 64,
    public: BenchmarkRequest | None = None,
    answers: Path | None = None,
    provenance: Provenance | None = None,
) -> EvaluationResult:
    """Return benchmark items, perplexities and size of a checkpoint folder.

    Args:
        folder: a checkpoint folder that stock transformers loads.
        tasks: the domains' own tasks.
        heldout: domain -> held-out texts.
        model: what to call the model in the result, `baseline` or `candidate`.
        backend: what answers the tasks, `hf` or `vllm`; texts are measured and written by transformers.
        device: see `load_stock`.
        dtype: see `load_stock`.
        batch_size: sequences per forward pass on the tasks.
        prompts: questions of each task after which the model writes freely.
        max_new_tokens: where such a text is cut.
        public: public benchmarks to ask besides.
        answers: a folder of this checkpoint and these settings alone, where their answers are kept, so that an
            evaluation that was stopped goes on after the last benchmark.
        provenance: where the checkpoint came from; what was measured with is added.

    Raises:
        CheckpointError: if the folder does not load.
        ParameterError: if a public benchmark is called as a task is.
        DataError: if an item or text does not suit the model.
        NotFiniteError: if a weight or a measurement is not a finite number.
    """
    public = public or BenchmarkRequest()
    _refuse_shared_names(tasks, public)
    size = measure_size(folder)
    asked = tasks, public, answers
    served = _ask(open_vllm(folder, dtype, public.seed), *asked) if backend == "vllm" else None
    if served:
        gc.collect()  # the engine gives its GPU memory back before transformers loads the same weights
    stock = load_stock(folder, device, dtype)
    check_weights(stock.model, model)
    items, digests = served or _ask(open_transformers(stock, batch_size), *asked)
    limits = {"prompts": prompts, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return EvaluationResult(
        model=model,
        items=items,
        perplexities=measure_perplexities(stock.model, stock.tokenizer, heldout),
        written=write_freely(stock.model, stock.tokenizer, tasks, **limits),
        num_parameters=size.num_parameters,
        num_bytes=size.num_bytes,
        provenance={
            **(provenance or {}),
            **{f"task_digest.{name}": digest for name, digest in digests.items()},
            "heldout_digest": digest_of({domain: list(texts) for domain, texts in heldout.items()}),
            "evaluation_backend": backend,
            "evaluation_dtype": dtype,
            "loaded_by": name_loader(folder),
            **_describe_loaded(stock),
            **_name_versions("lm_eval", "transformers", *(["vllm"] if served else [])),
        },
    )


def _refuse_shared_names(tasks: Sequence[BenchmarkTask], public: BenchmarkRequest) -> None:
    for name in {task.name for task in tasks} & set(public.benchmarks):
        raise ParameterError(f"'{name}' is a domain's task and a benchmark; rename it under benchmarks.definitions")


def _describe_loaded(stock: StockModel) -> dict[str, str]:
    return {
        "evaluation_device": str(stock.model.device),
        "missing_keys": str(len(stock.missing)),
        "unexpected_keys": str(len(stock.unexpected)),
    }


def _name_versions(*libraries: str) -> dict[str, str]:
    return {f"{library}_version": version(library) for library in libraries}


def _ask(
    lm: Any, tasks: Sequence[BenchmarkTask], public: BenchmarkRequest, answers: Path | None
) -> tuple[tuple[ItemResult, ...], dict[str, str]]:
    """Return all items, and task or benchmark -> digest of what was asked."""
    items, digests = ask_benchmarks(lm, public, answers)
    return (*ask_tasks(lm, tasks), *items), {**{task.name: task.digest for task in tasks}, **digests}
