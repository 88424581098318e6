"""Ask a model benchmark tasks through lm-evaluation-harness, keeping what it found of every item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lm_eval.api.task
from datasets import Dataset
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_compress.errors import ParameterError
from moe_compress.evaluation.encoding import encode_items
from moe_compress.evaluation.language_models import open_transformers
from moe_compress.evaluation.loading import StockModel, quiet
from moe_compress.evaluation.tasks import BenchmarkTask
from moe_compress.types import ItemResult

NOISY = ("lm_eval", "datasets", "transformers")


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[BenchmarkTask],
    *,
    batch_size: int = 64,
) -> tuple[ItemResult, ...]:
    """Ask a loaded model every item of every task.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: the tasks, with different names.
        batch_size: sequences in one forward pass; there is one sequence per choice.

    Returns:
        The items of all tasks, in the tasks' order.

    Raises:
        ParameterError: if two tasks share a name.
        DataError: if an item does not fit into the model's context.
        EvaluationError: if a log-likelihood is not a finite number.
    """
    return ask_tasks(open_transformers(StockModel(model, tokenizer, (), ()), batch_size), tasks)


def ask_tasks(lm: Any, tasks: Sequence[BenchmarkTask]) -> tuple[ItemResult, ...]:
    """Ask one of the harness's models every item of every task; see `score_tasks`."""
    if len({task.name for task in tasks}) < len(tasks):
        names = ", ".join(task.name for task in tasks)
        raise ParameterError(f"two tasks share a name in {names}; name them apart (evaluate.tasks)")
    for task in tasks:
        encode_items(lm.tokenizer, task.items, lm.max_length)
    if not tasks:
        return ()
    with quiet(*NOISY), no_bar_per_task():
        loaded = TaskManager(include_defaults=False).load([_with_data(task) for task in tasks])
        # `simple_evaluate` would only add a report on the machine, and reset every global random seed.
        samples = evaluate(lm, loaded, bootstrap_iters=0, log_samples=True)["samples"]
    return tuple(item for task in tasks for item in task.results(_log_likelihoods(samples[task.name])))


def _with_data(task: BenchmarkTask) -> dict[str, Any]:
    """Return the task's config with its items as a data set in memory; nothing is cached or fetched."""
    return {**task.harness_config(), "custom_dataset": lambda **_: {"test": Dataset.from_list(task.rows())}}


def _log_likelihoods(samples: Sequence[dict[str, Any]]) -> list[list[float]]:
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    return [[value for value, _ in sample["filtered_resps"]] for sample in ordered]


@contextmanager
def no_bar_per_task() -> Iterator[None]:
    """Hide the bar the harness shows while it builds each task's requests; it has no switch of its own."""
    shown = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = shown
