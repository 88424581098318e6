"""The page that compares two versions: whole, escaped, and nothing loaded from anywhere."""

from __future__ import annotations

import re

import pytest

from moe_compress.reporting.version_page import write_comparison
from moe_compress.reporting.wording import MISSING

COMPARED = {
    "versions": ["models:/moe-medical/1", "models:/moe-medical/2"],
    "same_run_key": False,
    "lineage": {"base model.weights digest": ["a1" * 32, "b2" * 32]},
    "parameters": {"select.method": ["easy_ep", "<script>alert(1)</script>"]},
    "gates": {"size_reduced": ["0.52, at most 0.9: passed", None]},
    "measured": {
        "baseline.accuracy.medical": [0.875, 0.875],
        "candidate.accuracy.medical": [0.8123, 0.85],
        "share_kept.medical": [0.9, None],
    },
    "plan_overlap": 0.75,
    "plan_overlap_unknown": None,
    "layers": [{"layer": 3, "kept": [28, 30], "both": 24, "either": 34, "overlap": 0.7059, "same_groups": 24}],
}


def page_of(folder, **changed):
    return write_comparison({**COMPARED, **changed}, folder / "page.html").read_text()


def text_of(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html[html.index("<body>") :]).split())


def test_everything_that_differs_is_on_the_page(tmp_path):
    text = text_of(page_of(tmp_path))
    assert "candidate.accuracy.medical 0.8123 0.85 +0.0377" in text
    assert f"share_kept.medical 0.9 {MISSING} {MISSING}" in text
    assert "base model.weights digest a1a1a1a1a1a1 b2b2b2b2b2b2" in text
    assert f"size_reduced 0.52, at most 0.9: passed {MISSING}" in text
    assert "3 28 30 24 70.6" in text and "both keep 75.0" in text
    assert text.index("The compressed models") < text.index("Their base models") < text.index("baseline.accuracy")


def test_each_model_has_a_table_of_its_own(tmp_path):
    measured = {
        "accuracy.quiz": [0.7, 0.7],
        "baseline.accuracy.medical": [0.9, 0.9],
        "candidate.accuracy.medical": [0.8, 0.8],
        "pruned.accuracy.medical": [None, 0.6],
        "pruned.perplexity.medical": [None, 5.0],
    }
    text = text_of(page_of(tmp_path, measured=measured))
    own, rest = text.split("Before tuning")
    pruned, base = rest.split("Their base models")
    assert "candidate.accuracy.medical" in own and "accuracy.quiz" in own
    assert "pruned.accuracy.medical" in pruned and "pruned.perplexity.medical" in pruned
    assert "baseline.accuracy.medical" in base and "pruned." not in base
    assert "Before tuning" not in text_of(page_of(tmp_path))


def test_what_users_named_is_text_and_nothing_is_loaded(tmp_path):
    html = page_of(tmp_path)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(""", html)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"same_run_key": True}, "Both are made from the same inputs."),
        ({"plan_overlap": None, "plan_overlap_unknown": "no plan", "layers": []}, "is not known: no plan."),
    ],
)
def test_what_is_the_same_or_unknown_is_said(tmp_path, changed, said):
    text = text_of(page_of(tmp_path, **changed))
    assert said in text and ("Experts kept" in text) == bool({**COMPARED, **changed}["layers"])
