"""The domains that ship: apart from each other, balanced, and large enough."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from moe_compress.reference.domains import DOMAINS
from moe_compress.reference.splits import DomainSplits, check_disjoint, split_digests

FOLDER = Path(__file__).parents[2] / "data" / "01_raw" / "domains"
SPLITS = ("demonstrations", "calibration", "heldout", "benchmark")


def read(domain, split):
    return tuple(json.loads(line) for line in (FOLDER / domain / f"{split}.jsonl").read_text().splitlines())


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_share_no_text(domain):
    splits = DomainSplits(domain, (), *(read(domain, split) for split in SPLITS))
    check_disjoint(split_digests(splits), domain)


@pytest.mark.parametrize("domain", DOMAINS)
def test_benchmark_is_large_balanced_and_well_formed(domain):
    rows = read(domain, "benchmark")
    places = Counter(row["answer"] for row in rows)
    assert len(rows) >= 1000
    assert max(places.values()) - min(places.values()) <= 1
    assert set(places) == {0, 1, 2, 3}
    assert all(len(set(row["choices"])) == 4 for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_right_choice_is_not_told_by_its_length(domain):
    rows = read(domain, "benchmark")
    shares = []
    for pick in (min, max):
        hits = [pick(range(4), key=lambda n, row=row: len(row["choices"][n])) == row["answer"] for row in rows]
        shares.append(sum(hits) / len(hits))
    assert max(shares) < 0.33, f"taking the shortest or longest choice is right in {shares}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_small_splits_have_their_columns(domain):
    for split, columns in (("demonstrations", {"id", "question", "answer"}), ("heldout", {"id", "text"})):
        rows = read(domain, split)
        assert len(rows) > 150
        assert all(set(row) == columns and all(row.values()) for row in rows)


def test_no_row_of_one_domain_is_in_another():
    seen = Counter(text for domain in DOMAINS for text in {row["question"] for row in read(domain, "benchmark")})
    assert max(seen.values()) == 1
