"""Commands a reader can paste."""

import ast
import shlex
from dataclasses import replace

import pytest

from moe_compress.reporting import usage
from moe_compress.reporting.content import CompressionReport


def test_reproduce_checks_out_the_commit_and_runs_the_pipeline(report: CompressionReport) -> None:
    assert usage.how_to_reproduce(report).splitlines() == [
        "git checkout 4c1f0e9b7d2a6358c0b4f1e2d3a49586b7c8d9e0",
        "kedro run --pipelines=prune_medical",
    ]


def test_a_recorded_command_is_given_as_it_was(report: CompressionReport) -> None:
    recorded = replace(report, provenance={"command": "kedro run --env=qwen --pipeline=prune_code"})
    assert usage.how_to_reproduce(recorded) == "kedro run --env=qwen --pipeline=prune_code"


def test_names_are_quoted_for_shell_and_python(report: CompressionReport) -> None:
    folder = 'my "best" model; rm'
    snippets = {snippet.title: snippet.code for snippet in usage.how_to_load(report, folder)}
    assert shlex.split(snippets["vLLM"]) == ["vllm", "serve", folder]
    strings = [n.value for n in ast.walk(ast.parse(snippets["transformers"])) if isinstance(n, ast.Constant)]
    assert strings.count(folder) == 2


@pytest.mark.parametrize(
    ("loader", "title", "code"),
    [
        ("AutoModelForCausalLM", "transformers", 'model = AutoModelForCausalLM.from_pretrained("m", dtype="auto")'),
        ("AutoModelForImageTextToText", "transformers", "import AutoModelForImageTextToText, AutoTokenizer"),
        ("moe_compress.load_model", "moe-compress", 'model = moe_compress.load_model("m", dtype="auto")'),
    ],
)
def test_the_snippet_loads_by_what_loaded_it(report: CompressionReport, loader: str, title: str, code: str) -> None:
    loaded = replace(report, candidate=replace(report.candidate, provenance={"loaded_by": loader}))
    first, second, *_ = usage.how_to_load(loaded, "m")
    assert (first.title, second.title) == (title, "vLLM")
    assert code in first.code


def test_where_layers_differ_only_our_own_loader_is_shown(report: CompressionReport) -> None:
    uneven = replace(
        report, plan=replace(report.plan, groups=(report.plan.groups[0][:24], *report.plan.groups[1:]))
    )
    snippets = {snippet.title: snippet.code for snippet in usage.how_to_load(uneven, 'a "b"')}
    assert list(snippets) == ["moe-compress", "MLflow"]
    assert (
        snippets["moe-compress"]
        == 'import moe_compress\nmodel = moe_compress.load_model("a \\"b\\"", dtype="auto")'
    )
    note = usage.loading_note(uneven) or ""
    assert "(24 to 32)" in note and "transformers reads one number for all layers and refuses" in note
    assert usage.loading_note(report) is None


def test_an_engine_that_would_misread_it_is_not_advertised(report: CompressionReport) -> None:
    misread = replace(report, compatibility=(replace(report.compatibility[1], verdict="misreads"),))
    assert "vLLM" not in [snippet.title for snippet in usage.how_to_load(misread, "m")]
    assert "vLLM" in [snippet.title for snippet in usage.how_to_load(report, "m")]
