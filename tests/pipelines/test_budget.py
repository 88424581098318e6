"""Budgets of bytes and parameters from the command: what is written is never larger, or it is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests.pipelines.test_wrong_inputs import assert_refused

from moe_compress.errors import ParameterError
from moe_compress.evaluation.throughput import measure_size
from moe_compress.pipelines.parameters import BudgetParameters

NO_SHARE = "select.budget.fraction_dropped=null"


def write(project, *params):
    result = project.run(
        "--pipelines=prune_medical", "--to-nodes=medical.rewrite_checkpoint", f"--params={','.join(params)}"
    )
    assert result.exit_code == 0, result.output
    newest = max(project.find("06_models/medical/*/checkpoint"), key=lambda path: path.stat().st_mtime_ns)
    return measure_size(newest)


def test_what_is_written_fits(project):
    base = measure_size(project.folder / "data/01_raw/model")
    # An expert is 3 x 16 x 32 weights of two bytes; two layers have them, and headers take a little.
    wanted, expert = int(base.num_bytes * 0.7), 2 * 3 * 16 * 32
    written = write(project, NO_SHARE, f"select.budget.max_bytes={wanted}")
    assert wanted - 2 * expert - 10_000 < written.num_bytes <= wanted
    # How it is written counts: the same size in other files is another plan.
    assert len(project.find("05_model_input/plans/medical/*/plan.json")) == 1
    uneven = ("select.budget.scope=global", "rewrite.layout=per_layer")
    written = write(project, NO_SHARE, f"select.budget.max_bytes={wanted}", *uneven)
    assert wanted - expert - 10_000 < written.num_bytes <= wanted
    wanted = int(base.num_parameters * 0.6)
    written = write(project, NO_SHARE, f"select.budget.max_parameters={wanted / 1e6}M")
    assert wanted - 2 * (3 * 16 * 32 + 33) < written.num_parameters <= wanted


def test_too_small_a_size(project):
    result = project.prune(NO_SHARE, "select.budget.max_bytes=30000")
    assert_refused(project, result, "30000 bytes leave 0 for experts", "give at least")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fraction_dropped": 0.5, "max_bytes": "24 GB"}, "exactly one of .* got .*0.5, 'max_bytes': '24 GB'"),
        ({}, "exactly one of experts_per_layer, .*, max_parameters, got none"),
        ({"max_bytes": "many"}, "a size of 'many' is not understood"),
        ({"max_parameters": "13 GB"}, "a number of parameters of '13 GB'"),
        ({"max_bytes": "1 GB", "at_least": 5}, "at_least and at_most are 5 and None"),
    ],
)
def test_budgets_that_contradict_themselves(fields, message):
    with pytest.raises(ParameterError, match=message):
        BudgetParameters(**fields).as_budget()


def test_bounds_of_nothing():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        BudgetParameters(max_bytes=1, at_least=0)


def test_a_method_that_does_not_go_by_the_budget_is_refused(project):
    wanted = int(measure_size(project.folder / "data/01_raw/model").num_bytes * 0.6)
    result = project.prune(
        "select.method=c_prune", "select.parameters.follow=rates", NO_SHARE, f"select.budget.max_bytes={wanted}"
    )
    assert result.exit_code == 1
    assert "'c_prune' keeps" in result.stderr and "fit into the size that is asked for" in result.stderr
    assert project.find("06_models/**/*.safetensors") == []
