"""Which public benchmarks a run asks, checked before a model is looked for, fetched before collecting starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_compress.evaluation.benchmarks import Benchmark, BenchmarkRequest, check_benchmarks, find_benchmarks
from moe_compress.pipelines.parameters import BenchmarksParameters, DomainParameters, EvaluateParameters
from moe_compress.types import MoELayout


def benchmarks_of(parameters: Mapping[str, Any], domain: str) -> dict[str, Benchmark]:
    """Return the benchmarks of a domain's run; the parameters need not have been validated.

    Raises:
        ParameterError: if the suite, or a benchmark it names, is not defined.
    """
    known = BenchmarksParameters.model_validate(parameters.get("benchmarks") or {})
    suite = parameters["evaluate"].get("suite", "embedded")
    mixed = parameters["domains"][domain].get("of") or (domain,)
    return find_benchmarks(known.suites, known.definitions, suite, *mixed)


def check_evaluation(parameters: Mapping[str, Any], domain: str) -> None:
    """Check that what a run is to evaluate can be evaluated here, before the base model is even looked for.

    Raises:
        ParameterError: if a benchmark runs generated code and that is not allowed, or something is not installed.
    """
    evaluate = EvaluateParameters.model_validate(parameters["evaluate"])
    check_benchmarks(benchmarks_of(parameters, domain), evaluate.run_generated_code, evaluate.backend)


def prepare_benchmarks(
    layout: MoELayout, evaluate: EvaluateParameters, benchmarks: BenchmarksParameters, own: DomainParameters
) -> BenchmarkRequest:
    """Return what will be asked of both models, with its data fetched.

    `layout` stands for a request that was checked; nothing else is waited for, so that a data set that cannot be
    had ends the run before statistics are collected.

    Raises:
        DataError: if a data set cannot be had.
        EvaluationError: if generated code is to be run and this machine cannot confine it.
    """
    found = find_benchmarks(benchmarks.suites, benchmarks.definitions, evaluate.suite, *own.targets)
    request = BenchmarkRequest(found, evaluate.limit, evaluate.seed, evaluate.chat_template)
    if found:
        from moe_compress.evaluation.public import fetch_benchmarks

        fetch_benchmarks(request)
    return request
