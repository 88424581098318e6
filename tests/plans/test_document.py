"""The plan's own document: a line per layer, exact when read back, and refused when it was changed or is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe_compress.errors import PlanError
from moe_compress.plans.document import read_document, write_document
from moe_compress.types import CompressionPlan, ExpertGroup, MoELayout, as_json, pruning_groups

LAYOUT = MoELayout((3, 4), (4, 4), 2)
MERGED = (ExpertGroup((1, 3), (0.1, 0.9)), ExpertGroup((2,)))
SCORES = np.random.default_rng(0).random((2, 4)) / 3


def make_plan(**fields):
    given = {"layout": LAYOUT, "scores": SCORES, "provenance": {"seed": "1", "base_id": "x"}} | fields
    return CompressionPlan(groups=(pruning_groups([0, 3]), MERGED), method="toy", **given)


def assert_same(found, plan):
    assert (found.groups, found.layout, found.method) == (plan.groups, plan.layout, plan.method)
    assert (found.provenance, found.router_groups) == (plan.provenance, plan.router_groups)
    if plan.scores is None:
        assert found.scores is None
    else:
        np.testing.assert_array_equal(found.scores, plan.scores)


@pytest.mark.parametrize(
    "plan",
    [
        make_plan(),
        make_plan(scores=None, provenance={}),
        make_plan(router_groups="flatten", layout=MoELayout((3, 4), (4, 4), 2, num_groups=2, topk_groups=1)),
    ],
)
def test_what_is_written_is_read_back_to_the_bit(plan):
    assert_same(read_document(write_document(plan), "x"), plan)


def test_a_layer_is_a_line():
    lines = write_document(make_plan()).splitlines()
    (third,) = (json.loads(line.strip(" ,")) for line in lines if '"layer": 3' in line)
    assert (third["experts"], third["kept"], third["merged"], third["groups"]) == (4, 2, 0, [0, 3])
    (fourth,) = (json.loads(line) for line in lines if '"layer": 4' in line)
    assert fourth["groups"] == [{"1": 0.1, "3": 0.9}, 2]
    assert {"margin", "lowest_kept", "highest_dropped"} <= set(third)


def old_document(plan, **changes):
    """Return a plan as earlier versions wrote it."""
    return json.dumps({**as_json(plan), "kept": as_json(plan.kept), "digest": plan.digest} | changes, indent=1)


def test_older_documents_are_read():
    assert_same(read_document(old_document(make_plan()), "x"), make_plan())
    content = json.loads(old_document(make_plan()))
    del content["router_groups"]  # the oldest had none
    assert_same(read_document(json.dumps(content), "x"), make_plan())


def edited(change):
    content = json.loads(write_document(make_plan()))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited(lambda c: c["layers"][0].update(groups=[0, 2])), "x was changed after it was planned"),
        (edited(lambda c: c.pop("digest")), "was changed after it was planned: its digest is None"),
        (edited(lambda c: c.update(format=3)), "plan of format 3, and this version reads up to 2"),
        (edited(lambda c: c.pop("layout")), "x is no plan of this package .KeyError"),
        (edited(lambda c: c["layers"][0].update(groups=["a"])), "x is no plan of this package"),
        ("[]", "x is no plan of this package"),
        ("{", "x is no plan of this package .JSONDecodeError"),
        ("[" * 100_000, "x is no plan of this package .RecursionError"),
        (edited(lambda c: c["layers"].pop()), "covers 1 layers"),
        (edited(lambda c: c["scores"].pop()), r"has scores of \[1, 4\].* 2 layers of up to 4 experts"),
        (edited(lambda c: [row.pop() for row in c["scores"]]), r"has scores of \[2, 3\]"),
        (edited(lambda c: c["scores"][0].pop()), "x is no plan of this package .ValueError"),
        (edited(lambda c: c.update(provenance=["seed"])), "x is no plan of this package .TypeError"),
        (edited(lambda c: c.update(provenance=None)), "x is no plan of this package .TypeError"),
        (edited(lambda c: c["layout"].update(num_groups=0)), "layer 3 has 4 experts in 0 router groups"),
        (
            edited(lambda c: None).replace('"top_k": 2', f'"top_k": {"9" * 5000}'),
            "no plan of this package .ValueError",
        ),
    ],
)
def test_what_is_no_such_document(text, message):
    with pytest.raises(PlanError, match=message):
        read_document(text, "x")
