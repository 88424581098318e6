"""A plan's format is told from its text."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress.errors import PlanError
from moe_compress.plans.document import write_document
from moe_compress.plans.formats import EXPORTS, find_format, read_any
from moe_compress.types import CompressionPlan, MoELayout, pruning_groups

LAYOUT = MoELayout((3, 4), (4, 4), 2)
PLAN = CompressionPlan(
    LAYOUT,
    (pruning_groups([0, 3]), pruning_groups([1, 2])),
    "toy",
    np.array([[4.0, 1.0, 2.0, 3.0], [0.0, 5.0, 9.0, 4.0]]),
)


@pytest.mark.parametrize("name", EXPORTS)
def test_each_format_is_told_and_read(name):
    text = EXPORTS[name](PLAN)
    assert find_format(text, "x") == name
    assert read_any(text, "x", LAYOUT, "balanced", lambda: (2, 2)).groups == PLAN.groups


def test_a_list_of_one_layer_that_drops_nothing_is_c_prunes():
    assert find_format('{"3": []}', "x") == "c_prune"


@pytest.mark.parametrize("text", ["", "hello", "3", '{"a": 1}', '{"3": [0, 1]}{', "[1", f"[{'9' * 5000}]"])
def test_what_is_no_plan(text):
    with pytest.raises(PlanError, match="x is neither a plan of this package"):
        find_format(text, "x")


def test_a_plan_for_another_model():
    message = (
        "x is for 2 layers of 4 experts with top_k=2 and 1 groups, and this model has 2 layers of 4 to 6 experts"
    )
    with pytest.raises(PlanError, match=message):
        read_any(write_document(PLAN), "x", MoELayout((3, 4), (4, 6), 2), "balanced", lambda: (2, 2))
