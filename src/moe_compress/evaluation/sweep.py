"""Try many plans on one loaded model: few items first, all for those that are not clearly worse.

What a plan answered is kept in a file of its own as soon as it did, named by the plan's digest, so that a sweep
that was stopped goes on and a wider one asks only what is new.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moe_compress.atomic import write_atomically
from moe_compress.errors import PlanError
from moe_compress.evaluation.compare import compare_items
from moe_compress.evaluation.divergence import BasePredictions
from moe_compress.evaluation.fast_choice import PACKABLE, ChoiceScorer
from moe_compress.evaluation.harness import score_tasks
from moe_compress.evaluation.loading import StockModel, load_stock
from moe_compress.evaluation.masked import check_plan, mask_experts
from moe_compress.evaluation.perplexity import measure_perplexities
from moe_compress.evaluation.tasks import BenchmarkTask, select_items
from moe_compress.types import CompressionPlan, ItemResult, SweepCheck, as_json

Items = tuple[ItemResult, ...]
Key = tuple[str, float]
"""Method and fraction dropped."""
_MEASURED = ("perplexity", "kl", "top1_agreement")
Write = Callable[[CompressionPlan, Path], None]


@dataclass(frozen=True)
class Round:
    """How far plans came.

    Attributes:
        answers: plan -> its answers to the last items it was asked.
        dropped_for: plan that is clearly worse -> the method that was better at its budget.
    """

    answers: Mapping[Key, Items]
    dropped_for: Mapping[Key, str]


class PlanTrials:
    """Answers and measurements of plans, each asked once.

    Args:
        stock: the base model as loaded.
        folder: where results are kept; it must be of one base model and one way of evaluating.
        tasks: the tasks with all their items.
        heldout: domain -> held-out texts.
        batch_size: sequences per forward pass, for families whose choices cannot be packed.
        write: writes a plan's checkpoint into a folder, for plans that merge; None refuses them.
    """

    def __init__(
        self,
        stock: StockModel,
        folder: Path,
        tasks: Sequence[BenchmarkTask],
        heldout: Mapping[str, Sequence[str]],
        batch_size: int = 64,
        write: Write | None = None,
    ) -> None:
        self._stock, self._folder, self._heldout = stock, folder, heldout
        self._tasks = {task.name: task for task in tasks}
        self._batch_size, self._write = batch_size, write
        self._scorers: dict[str, ChoiceScorer] = {}
        self._base: BasePredictions | None = None

    def answer(self, plan: CompressionPlan | None, task: str, limit: int, seed: int) -> Items:
        """Return how a plan, or the base for None, answers a seeded subset of a task's items.

        Raises:
            PlanError: if the plan cannot be tried.
            EvaluationError: if a log-likelihood is not a finite number.
        """
        wanted = select_items(self._tasks[task].items, limit, seed)
        known = self._read(plan)
        found = {item["item"]: _item(item) for item in known.get("items", ()) if item["task"] == task}
        missing = tuple(item for item in wanted if item.id not in found)
        if missing:
            with self._tried(plan) as model:
                new = self._ask(model, BenchmarkTask(task, missing))
            found |= {item.item: item for item in new}
            self._write_down(plan, {**known, "items": [*known.get("items", ()), *as_json(new)]})
        return tuple(found[item.id] for item in wanted)

    def measure(self, plan: CompressionPlan | None) -> dict[str, float]:
        """Return `perplexity.*`, `kl.*` and `top1_agreement.*` of each domain with held-out text.

        What was kept may be of other domains, because sweeps of several share the folder; only what it lacks is
        measured.
        """
        known = self._read(plan)
        measured: dict[str, float] = known.get("measured", {})
        wanted = {name: [f"{kind}.{name}" for kind in _MEASURED] for name in self._heldout}
        missing = [name for name, metrics in wanted.items() if not measured.keys() >= set(metrics)]
        if missing:
            measured |= self._measure(plan, missing)
            self._write_down(plan, {**known, "measured": measured})
        return {metric: measured[metric] for metrics in wanted.values() for metric in metrics}

    def _measure(self, plan: CompressionPlan | None, domains: Sequence[str]) -> dict[str, float]:
        if self._base is None:
            self._base = BasePredictions(self._stock.model, self._stock.tokenizer, self._heldout)
        texts = {name: self._heldout[name] for name in domains}
        with self._tried(plan) as model:
            perplexities = measure_perplexities(model, self._stock.tokenizer, texts)
            divergences = self._base.compare(model, domains)
        return {
            **{f"perplexity.{name}": value for name, value in perplexities.items()},
            **{f"kl.{name}": value.kl for name, value in divergences.items()},
            **{f"top1_agreement.{name}": value.agreement for name, value in divergences.items()},
        }

    def check(self, plan: CompressionPlan, task: str, limit: int, seed: int, write: Write) -> SweepCheck:
        """Return whether the checkpoint written by a plan answers as the base under its mask does."""
        masked = self.answer(plan, task, limit, seed)
        with self._rewritten(plan, write) as model:
            written = self._ask(model, BenchmarkTask(task, select_items(self._tasks[task].items, limit, seed)))
        pairs = list(zip(masked, written, strict=True))
        return SweepCheck(
            num_items=len(pairs),
            num_different=sum(one.chosen != other.chosen for one, other in pairs),
            largest=max(
                abs(a - b)
                for one, other in pairs
                for a, b in zip(one.log_likelihoods, other.log_likelihoods, strict=True)
            ),
        )

    @contextmanager
    def _tried(self, plan: CompressionPlan | None) -> Iterator[Any]:
        """Yield a model that is what a plan makes of the base."""
        if plan is None:
            yield self._stock.model
        elif plan.is_pruning or self._write is None:
            check_plan(plan)
            with mask_experts(self._stock.model, plan.kept):
                yield self._stock.model
        else:
            with self._rewritten(plan, self._write) as model:
                yield model

    @contextmanager
    def _rewritten(self, plan: CompressionPlan, write: Write) -> Iterator[Any]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".trial-") as folder:
            write(plan, Path(folder) / "checkpoint")
            model = self._stock.model
            dtype = str(model.dtype).removeprefix("torch.")
            yield load_stock(Path(folder) / "checkpoint", str(model.device), dtype).model

    def _ask(self, model: Any, task: BenchmarkTask) -> Items:
        if model.config.model_type not in PACKABLE:
            return score_tasks(model, self._stock.tokenizer, [task], batch_size=self._batch_size)
        if model is not self._stock.model:
            return ChoiceScorer(model, self._stock.tokenizer, [task]).score()
        if task.digest not in self._scorers:
            self._scorers[task.digest] = ChoiceScorer(model, self._stock.tokenizer, [task])
        return self._scorers[task.digest].score()

    def _file(self, plan: CompressionPlan | None) -> Path:
        return self._folder / f"{plan.digest[:24] if plan else 'base'}.json"

    def _read(self, plan: CompressionPlan | None) -> dict[str, Any]:
        file = self._file(plan)
        content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return content

    def _write_down(self, plan: CompressionPlan | None, content: dict[str, Any]) -> None:
        write_atomically(self._file(plan), json.dumps(content).encode())


def halve(
    trials: PlanTrials, plans: Mapping[Key, CompressionPlan], task: str, rungs: Sequence[int], seed: int
) -> Round:
    """Ask every plan few items, and those that are not clearly worse more and more.

    A plan is clearly worse if, on the same items, the 95 % interval of its difference from the best plan of its
    budget lies below 0; so every budget keeps its best to the end.

    Args:
        trials: asks.
        plans: what to try.
        task: whose items.
        rungs: how many items each round asks in all, ascending; the last is the number for those that stay.
        seed: selects items; those of a larger number hold those of a smaller.
    """
    answers: dict[Key, Items] = {}
    dropped: dict[Key, str] = {}
    for rung in rungs:
        left = [key for key in plans if key not in dropped]
        for key in tqdm(left, desc=f"plans on {rung} items", unit="plan"):
            answers[key] = trials.answer(plans[key], task, rung, seed)
        dropped |= find_clearly_worse({key: answers[key] for key in left})
    return Round(answers, dropped)


def find_clearly_worse(answers: Mapping[Key, Items]) -> dict[Key, str]:
    """Return the plans that are clearly worse than the best of their budget -> that plan's method."""
    worse = {}
    for fraction in {fraction for _, fraction in answers}:
        rivals = {key: items for key, items in answers.items() if key[1] == fraction}
        best = max(rivals, key=lambda key: (sum(item.is_correct for item in rivals[key]), key[0]))
        for key, items in rivals.items():
            if key != best and compare_items(rivals[best], items).difference_high < 0:
                worse[key] = best[0]
    return worse


def why_not_masked(plan: CompressionPlan) -> str | None:
    """Return why a plan cannot be tried under a mask; None where it can."""
    try:
        check_plan(plan)
    except PlanError as error:
        return str(error)
    return None


def _item(content: Mapping[str, Any]) -> ItemResult:
    return ItemResult(**{**content, "log_likelihoods": tuple(content["log_likelihoods"])})
