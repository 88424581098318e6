"""Why a run is needed, in words; every input of a run is a reason, and what it does not depend on is none."""

from __future__ import annotations

import json

import pytest
from tests.operations.conftest import Operator

from moe_compress.operations.base import BaseFacts
from moe_compress.operations.check import compare_leaves, explain, find_compared, note, to_promote
from moe_compress.registry.versions import RegisteredVersion

BASE = BaseFacts("base", "2", "w" * 64, "s" * 64)
PARTS = {
    "demonstrations_files": '{"medical":"d"}',
    "public_benchmarks": '{"gsm8k":"g"}',
    "calibration_digest": "none",
    "given_plan_digest": "none",
    "benchmarks": '{"medical":"b h"}',
    "parameters.select": '{"budget":{"fraction_dropped":0.5},"method":"reap"}',
    "code": '{"methods":"m"}',
    "libraries": '{"torch":"2.13"}',
}
TAGS = {
    "base_weights_digest": "w" * 64,
    "base_settings_digest": "s" * 64,
    "package_version": "0.1",
    "released": "candidate",
    **PARTS,
}


def made(version="1", **tags):
    return RegisteredVersion("moe", version, False, tags={**TAGS, **tags})


def why(base=BASE, parts=None, **tags):
    return [(each["what"], each["text"]) for each in explain(made(**tags), base, parts or PARTS)]


@pytest.mark.parametrize(
    ("tags", "what", "said"),
    [
        ({"base_weights_digest": "x" * 64}, "base weights", "new weights: xxxxxxxxxxxx -> wwwwwwwwwwww"),
        ({"base_settings_digest": "x"}, "base settings", "config, tokenizer or templates changed"),
        ({"demonstrations_files": '{"medical":"x"}'}, "demonstrations", "changed: medical"),
        ({"given_plan_digest": "p" * 64}, "given plan", "pppppppppppp -> none"),
        ({"public_benchmarks": '{"gsm8k":"x"}'}, "public benchmarks", "definitions changed: gsm8k"),
        ({"calibration_digest": "c" * 64}, "calibration", "swaps are measured on changed: cccccccccccc -> none"),
        ({"benchmarks": '{"medical":"x h"}'}, "benchmarks", "changed: medical"),
        (
            {"parameters.select": '{"budget":{"fraction_dropped":0.25},"method":"reap"}'},
            "parameters",
            "select.budget.fraction_dropped 0.25 -> 0.5",
        ),
        ({"code": '{"methods":"old"}'}, "code", "(moe-compress 0.1 -> 0.1.0): methods"),
        ({"libraries": '{"torch":"2.12"}'}, "libraries", "libraries.torch 2.12 -> 2.13"),
    ],
)
def test_each_part_is_a_reason(tags, what, said):
    ((found, text),) = why(**tags)
    assert found == what and said in text


def test_a_part_that_is_not_told_and_a_key_that_is_not_told_apart():
    version = made()
    del version.tags["code"]
    assert explain(version, BASE, PARTS) == [{"what": "code", "text": "the version does not tell its code"}]
    assert why()[0][0] == "run key"
    unfinished = made()
    del unfinished.tags["released"]
    assert explain(unfinished, BASE, PARTS)[0]["what"] == "unfinished"


def test_changed_settings_of_a_hub_are_named():
    ((_, text),) = why(BaseFacts("base", "2", "w" * 64, None, ("config.json",)))
    assert text.endswith("changed: config.json")


def test_leaves():
    assert compare_leaves('{"a":{"b":1,"c":2}}', '{"a":{"b":1,"d":3}}') == {
        "a.c": (2, "absent"),
        "a.d": ("absent", 3),
    }
    assert list(compare_leaves('{"a": ... cut', "{}")) == ["text"]


def test_the_champion_is_compared_then_the_candidate_then_the_newest():
    versions = [made("3"), made("2"), made("1")]
    assert find_compared(versions, {"champion": "1", "candidate": "2"}).version == "1"
    assert find_compared(versions, {"candidate": "2"}).version == "2"
    assert find_compared(versions, {}).version == "3"
    assert find_compared([], {}) is None


def test_notes():
    assert "revision went from 1 to 2 with the same weights" in note(made(base_revision="1"), BASE, {}, False)[0]
    (said,) = note(made(base_revision="2"), BASE, {"candidate": "1"}, True)
    assert "not the champion; kedro compress promote moe --version 1 makes it so" in said
    (said,) = note(made(base_revision="2", rolled_back="by ann"), BASE, {}, True)
    assert "was rolled back: by ann" in said
    assert note(made(base_revision="2"), BASE, {"champion": "1"}, True) == []


def test_what_there_is_to_promote():
    assert to_promote(made("1"), {"champion": "2", "candidate": "2"}) == "1"
    assert to_promote(made("1"), {}) == "1"
    assert to_promote(made("1"), {"champion": "1"}) is None
    assert to_promote(made("1", rolled_back="by ann"), {"champion": "2"}) is None
    assert to_promote(None, {"candidate": "1"}) is None


def test_what_a_run_is_made_from_is_what_check_asks_about(pruned):
    """After a run, changing an input makes check say so; changing what no stage reads does not."""
    operator = Operator(pruned)
    domains = operator.project.folder / "data/01_raw/domains"
    (operator.project.folder / "data/01_raw/model/README.md").write_text("# a new card")
    assert operator.ask("check", "medical")["needed"] is False
    for path, what in (
        (domains / "medical/demonstrations.jsonl", "demonstrations"),
        (domains / "code/benchmark.jsonl", "benchmarks"),
        (operator.project.folder / "data/01_raw/model/tokenizer.json", "base settings"),
    ):
        kept = path.read_bytes()
        path.write_bytes(kept + b"\n")
        assert [each["what"] for each in operator.ask("check", "medical", code=10)["reasons"]] == [what]
        path.write_bytes(kept)
    given = ("--params", "select.method=reap,evaluate.limit=20,release.alias=other")
    said = [each["text"] for each in operator.ask("check", "medical", *given, code=10)["reasons"]]
    assert said == [
        "select.method easy_ep -> reap",
        "evaluate.limit 300 -> 20",
        "release.alias candidate -> other",
    ]
    tags = json.dumps(operator.ask("show", "medical"))
    assert "easy_ep" in tags
