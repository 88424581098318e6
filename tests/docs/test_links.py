"""What the pages outside the site link to is there; inside it, mkdocs looks itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(name):
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    used, defined = set(re.findall(r"\]\[(\w+)\]", text)), set(re.findall(r"^\[(\w+)\]: ", text, re.M))
    assert used == defined
    places = [place for place in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in place]
    assert places and [place for place in places if not (page.parent / place.partition("#")[0]).exists()] == []


def test_pictures_are_small():
    pictures = [*(ROOT / "docs").rglob("*.png")]
    assert pictures and {picture.name for picture in pictures if picture.stat().st_size > 200_000} == set()
