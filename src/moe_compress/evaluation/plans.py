"""Measure many plans with one loaded model: each is tried under a router mask, which equals removing experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from moe_compress.evaluation.fast_choice import ChoiceScorer
from moe_compress.evaluation.masked import mask_experts
from moe_compress.evaluation.perplexity import measure_perplexities
from moe_compress.evaluation.tasks import BenchmarkTask
from moe_compress.types import CompressionPlan, ItemResult


@dataclass(frozen=True)
class PlanScore:
    """What one plan keeps.

    Attributes:
        num_right: task -> items answered rightly.
        num_items: task -> items asked.
        perplexities: domain -> perplexity per token on held-out text.
    """

    num_right: Mapping[str, int]
    num_items: Mapping[str, int]
    perplexities: Mapping[str, float]

    def accuracy(self, task: str) -> float:
        """Return the share of a task's items answered rightly, in 0..1."""
        return self.num_right[task] / self.num_items[task]


class PlanScorer:
    """Tasks and held-out texts prepared once for any number of plans.

    Args:
        model: a loaded stock model of a maskable family.
        tokenizer: its tokenizer.
        tasks: the benchmark tasks; each is asked of a plan in full, or in part by `score(few=...)`.
        few: the same tasks with fewer items, for plans that were made for another domain.
        heldout: domain -> held-out texts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tasks: Sequence[BenchmarkTask],
        few: Sequence[BenchmarkTask],
        heldout: Mapping[str, Sequence[str]],
    ) -> None:
        self._model, self._tokenizer, self._heldout = model, tokenizer, heldout
        self._full = {task.name: ChoiceScorer(model, tokenizer, [task]) for task in tasks}
        self._few = {task.name: ChoiceScorer(model, tokenizer, [task]) for task in few}

    def score(self, plan: CompressionPlan | None, in_full: Sequence[str]) -> PlanScore:
        """Return what a plan keeps; None measures the model as it is.

        Args:
            plan: the plan to try.
            in_full: tasks asked with all their items; the others are asked with few.
        """
        if plan is None:
            return self._measure(in_full)
        with mask_experts(self._model, plan.kept):
            return self._measure(in_full)

    @torch.inference_mode()
    def _measure(self, in_full: Sequence[str]) -> PlanScore:
        scorers = {name: self._full[name] if name in in_full else few for name, few in self._few.items()}
        items = {name: scorer.score() for name, scorer in scorers.items()}
        return PlanScore(
            num_right={name: count_right(results) for name, results in items.items()},
            num_items={name: len(results) for name, results in items.items()},
            perplexities=measure_perplexities(self._model, self._tokenizer, self._heldout),
        )


def count_right(items: Sequence[ItemResult]) -> int:
    """Return how many items were answered rightly."""
    return sum(item.is_correct for item in items)


def score_plans(
    scorer: PlanScorer, plans: Mapping[tuple[str, str, float], CompressionPlan]
) -> Iterator[tuple[tuple[str, str, float], PlanScore]]:
    """Yield each plan's key and score; a key is (method, domain the plan is for, fraction dropped)."""
    for key, plan in tqdm(plans.items(), desc="plans", unit="plan"):
        yield key, scorer.score(plan, in_full=[key[1]])
