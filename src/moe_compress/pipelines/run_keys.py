"""The run keys: a digest of everything a stage's output depends on, chained from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import moe_compress
from moe_compress.errors import DataError
from moe_compress.pipelines.benchmarks import benchmarks_of
from moe_compress.pipelines.collect import what_collects
from moe_compress.pipelines.digests import file_digest, source, versions
from moe_compress.pipelines.given_plan import locate
from moe_compress.pipelines.parameters import SelectParameters
from moe_compress.pipelines.requests import find_reduction, find_requests, find_sweep_requests
from moe_compress.types import digest_of

_SAME_SUMS = ("mode", "shard")
"""Settings of collecting that do not change what is collected."""

_LIMITS = ("min_demonstrations", "min_tokens", "max_tokens")
"""Settings of the demonstrations that only refuse: what passes is the same."""

STAGES = (
    "collect",
    "select",
    "rewrite",
    "tune",
    "compatibility",
    "baseline",
    "pruned",
    "candidate",
    "probes",
    "run",
    "sweep_collect",
    "sweep",
)


def stage_keys(
    parameters: Mapping[str, Any],
    domain: str,
    base_digest: str,
    demonstrations: Mapping[str, Path],
    domains_folder: Path,
) -> dict[str, str]:
    """Return stage -> sha256 of what its output depends on; a stage's key contains those it builds on.

    Args:
        parameters: the run's parameters as Kedro resolved them.
        domain: the domain compressed for.
        base_digest: digest of the base checkpoint's weights and config.
        demonstrations: domain -> its demonstrations file, of the domain itself or of all that it is a mixture of.
        domains_folder: holds a folder with benchmark and held-out text per task.

    Raises:
        DataError: if a task has no benchmark.
        ParameterError: if a benchmark is not defined.
    """
    chain = _Chain(parameters, domain, base_digest, demonstrations, domains_folder)
    return {stage: getattr(chain, stage) for stage in STAGES}


@dataclass(frozen=True)
class _Chain:
    """One run's keys; the arguments are those of `stage_keys`."""

    parameters: Mapping[str, Any]
    domain: str
    base_digest: str
    demonstrations: Mapping[str, Path]
    domains_folder: Path

    @cached_property
    def collect(self) -> str:
        return self._collect(None)

    @cached_property
    def sweep_collect(self) -> str:
        listed = self.parameters["collect"].get("statistics", ())
        return self._collect(find_sweep_requests(self.parameters["sweep"]["methods"], listed))

    def _collect(self, requests: tuple[str, ...] | None) -> str:
        """Return the key of a domain's statistics, or of those of all that it mixes.

        Args:
            requests: statistics collected besides those every collection has; None for what each domain asks for.
        """
        keys = {}
        for name, file in self.demonstrations.items():
            asked = requests_of(self.parameters, name) if requests is None else requests
            keys[name] = digest_of(
                [
                    self.base_digest,
                    file_digest(file),
                    self._sampling,
                    {key: value for key, value in self.parameters["collect"].items() if key not in _SAME_SUMS},
                    asked,
                    _reduction_of(self.parameters, name, asked),
                    *what_collects(),
                ]
            )
        return keys.get(self.domain) or digest_of([keys, source("pipelines/mixture.py")])

    @cached_property
    def select(self) -> str:
        given = find_source(self.parameters, self.domain)
        read = [self.base_digest, file_digest(locate(given, self.domain)), source("plans")] if given else None
        return digest_of(
            [
                read or self.collect,
                self.parameters["select"],
                self._own.get("select"),
                what_sizes_depend_on(self.parameters, self.domain),
                source("methods", "pipelines/select.py"),
                *self._refined_by,
            ]
        )

    @property
    def _refined_by(self) -> list[Any]:
        """What a refined plan depends on besides the plan; nothing where none is refined."""
        text = find_calibration(self.parameters, self.domain, self.domains_folder)
        if text is None:
            return []
        evaluate = [self.parameters["evaluate"][name] for name in ("device", "dtype")]
        code = source("evaluation", "loading.py", "pipelines/refine.py")
        return [self.collect, self._sampling, text, evaluate, code, versions("torch", "transformers")]

    @cached_property
    def rewrite(self) -> str:
        code = source("checkpoint", "families", "pipelines/rewrite.py")
        return digest_of([self.select, self.parameters["rewrite"], code])

    @cached_property
    def tune(self) -> str:
        settings = what_tunes(self.parameters)
        if not settings:
            return self.rewrite
        texts = {name: file_digest(path) for name, path in self.demonstrations.items()}
        left_out = [self._benchmark_digests, self._benchmarks]
        code = source("tuning", "loading.py", "pipelines/tune.py")
        return digest_of([self.rewrite, settings, [self._sampling, texts], left_out, code])

    @cached_property
    def compatibility(self) -> str:
        facts = file_digest(Path(moe_compress.__file__).parent / "compatibility" / "engines.yaml")
        code = source("compatibility", "pipelines/rewrite.py")
        return digest_of([self.select, self.parameters["rewrite"], facts, code])

    @cached_property
    def baseline(self) -> str:
        evaluate = {name: value for name, value in self.parameters["evaluate"].items() if name != "batch_sizes"}
        return digest_of(
            [
                self.base_digest,
                self._benchmark_digests,
                evaluate,
                self._benchmarks,
                source("evaluation", "families", "loading.py", "pipelines/evaluate.py", "pipelines/benchmarks.py"),
                versions(*what_evaluates(self.parameters, self.domain)),
            ]
        )

    @cached_property
    def pruned(self) -> str:
        return digest_of([self.rewrite, self.baseline])

    @cached_property
    def candidate(self) -> str:
        return digest_of([self.tune, self.baseline])

    @cached_property
    def probes(self) -> str:
        return digest_of([self.candidate, self.parameters["evaluate"], source("pipelines/probe.py")])

    @cached_property
    def run(self) -> str:
        blocks = [self.parameters[block] for block in ("data", "statistics_gates", "gates", "release")]
        return digest_of([self.probes, *blocks, self._own, source("gates", "pipelines/measure.py")])

    @cached_property
    def sweep(self) -> str:
        blocks = ("data", "sweep", "select", "rewrite", "statistics_gates", "gates")
        return digest_of(
            [
                *[self.sweep_collect, self.baseline],
                *[self.parameters[block] for block in blocks],
                self._own,
                source("methods", "checkpoint", "gates"),
                source("pipelines/sweep.py", "pipelines/trials.py", "pipelines/measure.py"),
            ]
        )

    @property
    def _sampling(self) -> dict[str, Any]:
        """Which demonstrations are taken; what only refuses them is for the stages that release or choose."""
        return {name: value for name, value in self.parameters["data"].items() if name not in _LIMITS}

    @property
    def _own(self) -> Mapping[str, Any]:
        own: Mapping[str, Any] = self.parameters["domains"][self.domain]
        return own

    @cached_property
    def _benchmarks(self) -> dict[str, Any]:
        """The public benchmarks that are run, by name."""
        return {name: each.model_dump() for name, each in benchmarks_of(self.parameters, self.domain).items()}

    @cached_property
    def _benchmark_digests(self) -> list[tuple[str, str, str]]:
        tasks = evaluated_tasks(self.parameters["evaluate"]["tasks"], tuple(self.demonstrations))
        folders = [self.domains_folder / task for task in tasks]
        for folder in folders:
            if not (folder / "benchmark.jsonl").is_file():
                raise DataError(
                    f"no questions to measure '{folder.name}' with: put {folder / 'benchmark.jsonl'} there, each "
                    'line as {"id": "q1", "question": "...", "choices": ["...", "..."], "answer": 0}'
                )
        return [
            (folder.name, file_digest(folder / "benchmark.jsonl"), file_digest(folder / "heldout.jsonl"))
            for folder in folders
        ]


def what_evaluates(parameters: Mapping[str, Any], domain: str) -> tuple[str, ...]:
    """Return the libraries that evaluated numbers depend on."""
    benchmarks = benchmarks_of(parameters, domain).values()
    problems = {each.problems.replace("_", "-") for each in benchmarks if each.problems}
    engine = ["vllm"] if parameters["evaluate"].get("backend") == "vllm" else []
    return ("torch", "transformers", "lm-eval", *sorted(problems), *engine)


def find_calibration(parameters: Mapping[str, Any], domain: str, domains_folder: Path) -> str | None:
    """Return the digest of the text of its own that a domain's plan is refined on, None where none is refined."""
    if not (_chosen(parameters, domain).get("refine") or {}).get("swaps"):
        return None
    return file_digest(domains_folder / domain / "calibration.jsonl")


def _chosen(parameters: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """Return how one domain's plan is selected; the parameters need not have been validated."""
    return {**parameters["select"], **(parameters["domains"][domain].get("select") or {})}


def what_tunes(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tuned model depends on besides its texts; nothing where nothing is tuned."""
    settings = parameters["tune"]
    if not settings["steps"]:
        return {}
    further = file_digest(Path(settings["text"])) if settings["text"] else None
    libraries = versions("torch", "transformers", "accelerate", *(["peft"] if settings["kind"] == "lora" else []))
    return {**settings, "text_digest": further, "libraries": libraries}


def find_source(parameters: Mapping[str, Any], domain: str) -> str | None:
    """Return what a domain's `select.from` says; the parameters need not have been validated."""
    blocks = [parameters["select"], (parameters["domains"].get(domain) or {}).get("select")]
    said = [block["from"] for block in blocks if isinstance(block, Mapping) and "from" in block]
    return said[-1] if said else None


def what_sizes_depend_on(parameters: Mapping[str, Any], domain: str) -> list[Any]:
    """Return what a budget of bytes or parameters depends on besides itself: how the checkpoint is written."""
    budget = _chosen(parameters, domain).get("budget") or {}
    if budget.get("max_bytes") is None and budget.get("max_parameters") is None:
        return []
    return [parameters["rewrite"], source("checkpoint", "families")]


def requests_of(parameters: Mapping[str, Any], domain: str) -> tuple[str, ...]:
    """Return the statistics that one domain's run collects besides those every collection has."""
    chosen = _chosen(parameters, domain)
    return find_requests(chosen["method"], parameters["collect"].get("statistics", ()))


def _reduction_of(parameters: Mapping[str, Any], domain: str, requests: tuple[str, ...]) -> list[str]:
    """Return all that a collection's result depends on when a method reduces each layer's sample in it."""
    if "elimination" not in requests:
        return []
    chosen = SelectParameters.model_validate(_chosen(parameters, domain))
    return [repr(find_reduction(requests, chosen)), source("methods")]


def evaluated_tasks(tasks: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks to evaluate, sorted: those asked for, and those of the domains compressed for."""
    return tuple(sorted({*targets, *tasks}))
