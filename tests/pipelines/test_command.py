"""The command itself: what is registered, and how a bad parameter reads."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import get_type_hints

import pytest

from moe_compress.atomic import write_atomically
from moe_compress.command_line import describe, describe_validation
from moe_compress.errors import DataError


def test_every_domain_has_a_pipeline(project):
    from kedro.framework.project import pipelines

    assert {"prune_medical", "prune_code", "prune_math", "prune_finance", "prune_general"} <= set(pipelines)
    assert {"results", "train_reference"} <= set(pipelines)


def test_listing_pipelines_loads_nothing_heavy(project):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kedro.framework.startup import bootstrap_project\n"
        "bootstrap_project(Path.cwd())\n"
        "from kedro.framework.project import pipelines\n"
        "assert 'prune_medical' in pipelines\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'great_expectations', 'matplotlib', 'datasets', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_validation_error_becomes_one_sentence():
    message = (
        "Parameter validation failed:\n- Failed to instantiate SelectParameters for parameter 'select': 1 "
        "validation error for SelectParameters\nmetod\n  Extra inputs are not permitted [type=extra_forbidden, ...]"
    )
    assert describe_validation(message) == (
        "select.metod: is not a parameter; see conf/base for the parameters there are"
    )


def test_a_misspelt_parameter_is_one_line_to_who_types_it(project):
    command = [sys.executable, "-m", "kedro", "run", "--pipelines=prune_medical", "--params=select.metod=x"]
    typed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (typed.returncode, typed.stdout) == (1, "")
    assert typed.stderr == "Error: select.metod: is not a parameter; see conf/base for the parameters there are\n"


def test_a_validation_error_of_another_shape_is_shown_whole():
    assert describe_validation("something\n  else") == "something else"


def test_kedro_finds_the_types_of_every_node(project):
    from kedro.framework.project import pipelines

    functions = {node.func for name in pipelines for node in pipelines[name].nodes}
    assert len(functions) > 30
    for function in functions:  # one that it does not find is a warning in every command, and not validated
        get_type_hints(function)


def test_our_error_is_found_behind_kedros():
    try:
        try:
            raise DataError("no rows")
        except DataError as error:
            raise RuntimeError("while loading") from error
    except RuntimeError as wrapped:
        assert describe(wrapped) == "no rows"


def test_an_error_that_is_not_ours_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        describe(ZeroDivisionError("1/0"))


def test_a_full_disk_is_said_with_its_place(tmp_path, monkeypatch):
    def fill(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "plan.json", b"{}")
    assert describe(caught.value) == (
        f"the disk is full where {tmp_path}/plan.json is written; free space and run again without --fresh, "
        "which keeps what is done"
    )
    assert list(tmp_path.iterdir()) == []
