"""The bench plans of a sweep are tried on: what it asks, and what gates may want of a plan under a mask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.pipelines.measure import compare_numbers, measure_tasks, name_worst
from moe_compress.pipelines.parameters import EvaluateParameters, RewriteParameters
from moe_compress.types import CheckpointReference, CompressionPlan, ItemResult, SweepCheck

if TYPE_CHECKING:
    from moe_compress.evaluation.sweep import PlanTrials, Round

Key = tuple[str, float]

MASKED_METRICS = frozenset(
    {
        *("accuracy", "share_kept", "difference", "p_value", "effect", "lost", "gained"),
        *("perplexity", "perplexity_ratio", "kl", "top1_agreement", "size_ratio", "parameter_ratio"),
    }
)
"""The kinds of metric that `Bench.measure` knows; a mask says nothing about others."""


class Bench:
    """One domain's questions and texts, put to plans with one loaded base model.

    Args:
        base_model: the checkpoint.
        tasks: the domain's own task first, then those that gates ask about.
        domains_folder: where their items and texts are.
        folder: where results are kept.
        evaluate: what is asked, and in which precision.
        rewrite: how the checkpoint would be written.
        rewrite_merging: whether plans that merge are written and loaded instead of masked.
    """

    def __init__(
        self,
        base_model: CheckpointReference,
        tasks: tuple[str, ...],
        domains_folder: Path,
        folder: Path,
        evaluate: EvaluateParameters,
        rewrite: RewriteParameters,
        rewrite_merging: bool,
    ) -> None:
        self._base_model, self._rewrite, self._seed = base_model, rewrite, evaluate.seed
        self._domains_folder, self._evaluate, self._folder = domains_folder, evaluate, folder
        self._rewrite_merging = rewrite_merging
        self._names, self._own = tasks, tasks[0]

    @cached_property
    def _trials(self) -> PlanTrials:
        from moe_compress.evaluation.heldout import read_heldout
        from moe_compress.evaluation.loading import load_stock
        from moe_compress.evaluation.sweep import PlanTrials

        evaluate = self._evaluate
        return PlanTrials(
            load_stock(self._base_model.path, evaluate.device, evaluate.dtype),
            self._folder,
            self._tasks,
            read_heldout(self._domains_folder, self._names, evaluate.heldout_limit, evaluate.seed),
            evaluate.batch_size,
            self._write if self._rewrite_merging else None,
        )

    @cached_property
    def _tasks(self) -> list[Any]:
        from moe_compress.evaluation.tasks import load_task

        return [load_task(name, self._domains_folder / name / "benchmark.jsonl") for name in self._names]

    @cached_property
    def limits(self) -> dict[str, int]:
        """Task -> how many of its items are asked in the end."""
        limit = self._evaluate.limit
        return {task.name: min(limit or len(task.items), len(task.items)) for task in self._tasks}

    def halve(self, plans: Mapping[Key, CompressionPlan], rungs: tuple[int, ...]) -> Round:
        """Return how far plans came on the domain's own items; see `evaluation.sweep.halve`."""
        from moe_compress.evaluation.sweep import halve

        last = self.limits[self._own]
        steps = (*sorted({rung for rung in rungs if rung < last}), last)
        return halve(self._trials, plans, self._own, steps, self._seed)

    def answer(self, plan: CompressionPlan | None) -> dict[str, tuple[ItemResult, ...]]:
        """Return task -> answers to all its items; None asks the base."""
        limits = self.limits.items()
        return {name: self._trials.answer(plan, name, limit, self._seed) for name, limit in limits}

    def measure(self, plan: CompressionPlan) -> dict[str, float]:
        """Return everything a gate may ask of a plan under a mask, metric -> value, as of a written candidate.

        Per task and for `domain`: perplexities, KL, agreement, and what `measure_tasks` tells; of the whole:
        `size_ratio`, `parameter_ratio`.
        """
        from moe_compress.evaluation.compare import compare_items

        before, after = self._trials.measure(None), self._trials.measure(plan)
        compared = {
            task: compare_items(self._base_answers[task], items, seed=self._seed)
            for task, items in self.answer(plan).items()
        }
        measured = {**after, **compare_numbers(before, after), **measure_tasks(compared).values, **self.size(plan)}
        return name_worst(measured, (self._own,))

    @cached_property
    def base_values(self) -> dict[str, float]:
        """What the base reaches, metric -> value, for limits that are relative to it."""
        accuracies = {
            f"accuracy.{task}": sum(item.is_correct for item in items) / len(items)
            for task, items in self._base_answers.items()
        }
        return name_worst({**self._trials.measure(None), **accuracies}, (self._own,))

    @cached_property
    def _base_answers(self) -> dict[str, tuple[ItemResult, ...]]:
        return self.answer(None)

    def size(self, plan: CompressionPlan) -> dict[str, float]:
        """Return `size_ratio` and `parameter_ratio` of the checkpoint a plan would write, from names alone."""
        rewrite = self._plan_rewrite(plan)
        parameters = sum(map(prod, rewrite.shapes.values()))
        return {
            "size_ratio": rewrite.num_bytes / self._base_size.num_bytes,
            "parameter_ratio": parameters / self._base_size.num_parameters,
        }

    @cached_property
    def _base_size(self) -> Any:
        from moe_compress.evaluation.throughput import measure_size

        return measure_size(self._base_model.path)

    def check(self, plan: CompressionPlan) -> SweepCheck:
        """Return whether the written checkpoint of a plan answers the domain's items as the mask does."""
        return self._trials.check(plan, self._own, self.limits[self._own], self._seed, self._write)

    def _plan_rewrite(self, plan: CompressionPlan) -> CheckpointRewrite:
        from moe_compress.pipelines.rewrite import plan_rewrite

        return plan_rewrite(self._base_model, plan, self._rewrite)

    def _write(self, plan: CompressionPlan, folder: Path) -> None:
        from moe_compress.checkpoint.stream import write_checkpoint

        write_checkpoint(self._plan_rewrite(plan), folder)
