"""Measure the plans of the results table, several processes at a time; what was measured before is read again.

Import this module only to measure: it loads torch and transformers.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from moe_compress.atomic import write_atomically
from moe_compress.checkpoint.index import CheckpointIndex, read_index
from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.evaluation.heldout import read_heldout
from moe_compress.evaluation.loading import StockModel, load_stock
from moe_compress.evaluation.plans import PlanScorer
from moe_compress.evaluation.tasks import load_task
from moe_compress.families.derive import derive_tensor_map
from moe_compress.pipelines.digests import file_digest, source, versions
from moe_compress.pipelines.results_plans import ResultsParameters
from moe_compress.types import CheckpointReference, CompressionPlan, Measurement, TensorMap, Trial, digest_of

MEASURING = (
    "evaluation/divergence.py",
    "evaluation/encoding.py",
    "evaluation/fast_choice.py",
    "evaluation/heldout.py",
    "evaluation/loading.py",
    "evaluation/masked.py",
    "evaluation/perplexity.py",
    "evaluation/plans.py",
    "evaluation/tasks.py",
    "evaluation/windows.py",
    "families/masking.py",
    "loading.py",
)
"""The code that a measurement runs, part of its key; what else changes in evaluation leaves old ones good."""

Job = tuple[CompressionPlan | None, str]
"""A plan, or None for the base model, and the domain it is measured on."""


@dataclass(frozen=True)
class Setting:
    """What all measurements of one table have in common.

    Attributes:
        base: the base model.
        domains_folder: holds a folder with benchmark and held-out text per domain.
        benchmark_limit: items per domain; None for all.
        heldout_limit: texts per domain; None for all.
        seed: which of them.
        folder: where each measurement is kept under its key.
    """

    base: CheckpointReference
    domains_folder: Path
    benchmark_limit: int | None
    heldout_limit: int | None
    seed: int
    folder: Path

    def place_of(self, job: Job) -> Path:
        """Return the file of a measurement, named by a digest of all it depends on."""
        plan, domain = job
        made_from = [
            self.base.identity,
            plan.digest if plan else "base",
            [file_digest(self.domains_folder / domain / f"{name}.jsonl") for name in ("benchmark", "heldout")],
            [self.benchmark_limit, self.heldout_limit, self.seed],
            source(*MEASURING, *(() if plan is None or plan.is_pruning else ("checkpoint", "families"))),
            versions("torch", "transformers"),
        ]
        return self.folder / f"{digest_of(made_from)[:24]}.json"


class Runner:
    """One process that measures: the base model is loaded once, and each domain prepared when it first comes."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._scorers: dict[str, PlanScorer] = {}

    @cached_property
    def _stock(self) -> StockModel:
        return load_stock(self._setting.base.path)

    @cached_property
    def _checkpoint(self) -> tuple[CheckpointIndex, TensorMap]:
        index = read_index(self._setting.base.path)
        return index, derive_tensor_map(index.config, index.shapes)

    def _scorer(self, domain: str) -> PlanScorer:
        if domain not in self._scorers:
            setting, folder = self._setting, self._setting.domains_folder / domain
            task = load_task(domain, folder / "benchmark.jsonl", setting.benchmark_limit, setting.seed)
            heldout = read_heldout(setting.domains_folder, [domain], setting.heldout_limit, setting.seed)
            texts = heldout.get(domain, [])
            self._scorers[domain] = PlanScorer(self._stock.model, self._stock.tokenizer, task, texts)
        return self._scorers[domain]

    def run(self, job: Job) -> None:
        """Measure a job and keep what was found."""
        plan, domain = job
        found = self._measure(plan, self._scorer(domain))
        write_atomically(self._setting.place_of(job), json.dumps(asdict(found)).encode())

    def _measure(self, plan: CompressionPlan | None, scorer: PlanScorer) -> Measurement:
        index, tensor_map = self._checkpoint
        if plan is None:
            parameters = sum(prod(info.shape) for info in index.tensors.values())
            return scorer.measure_masked(None, parameters)
        # Names alone tell the size; a plan that only prunes needs no more than that of the rewriter.
        rewrite = plan_rewrite(index, tensor_map, plan, layout="per_layer")
        parameters = sum(map(prod, rewrite.shapes.values()))
        if plan.is_pruning:
            return scorer.measure_masked(plan.kept, parameters)
        return self._measure_written(rewrite, scorer, parameters)

    def _measure_written(self, rewrite: CheckpointRewrite, scorer: PlanScorer, parameters: int) -> Measurement:
        """Measure what merging makes, which no mask can show: the checkpoint is written, loaded and removed."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "candidate"
            write_checkpoint(rewrite, place)
            return scorer.measure_model(load_stock(place).model, parameters)


_runner: Runner


def _start(setting: Setting, threads: int) -> None:
    global _runner
    torch.set_num_threads(threads)
    _runner = Runner(setting)


def _run(job: Job) -> None:
    _runner.run(job)


def measure_jobs(setting: Setting, jobs: Sequence[Job], workers: int | None) -> None:
    """Measure what was not measured before, showing how far it is.

    Args:
        setting: what all have in common.
        jobs: plans and domains.
        workers: processes; None for one per core, or one where there is a GPU.
    """
    wanted = {setting.place_of(job): job for job in jobs}
    missing = [job for place, job in wanted.items() if not place.is_file()]
    cores = os.cpu_count() or 1
    count = min(workers or (1 if torch.cuda.is_available() else cores), max(1, len(missing)))
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc="measure", unit="plan", smoothing=0)
    with bar:
        if count == 1:
            runner = Runner(setting)
            for job in missing:
                runner.run(job)
                bar.update()
            return
        pool = ProcessPoolExecutor(count, get_context("spawn"), _start, (setting, max(1, cores // count)))
        try:
            for done in as_completed([pool.submit(_run, job) for job in missing]):
                done.result()
                bar.update()
        finally:
            # What stopped half-way, by an error or by hand, goes on from what is kept; nothing more is begun.
            pool.shutdown(cancel_futures=True)


def read_measurements(setting: Setting, jobs: Iterable[Job]) -> list[Measurement]:
    """Return what was measured, in the order of the jobs."""
    return [_read(setting.place_of(job)) for job in jobs]


def _read(place: Path) -> Measurement:
    content: Mapping[str, Any] = json.loads(place.read_text())
    return Measurement(**{**content, "right": tuple(content["right"])})


def list_jobs(trials: Sequence[Trial], parameters: ResultsParameters) -> list[Job]:
    """Return what is to be measured, the base model first."""
    base: list[Job] = [(None, domain) for domain in parameters.domains]
    return base + [(trial.plan, domain) for trial in trials for domain in trial.domains]
