"""Held-out texts of a domain, for perplexity: always the same ones for a file, a limit and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from moe_compress.errors import DataError
from moe_compress.evaluation.tasks import read_rows


def read_texts(file: Path, limit: int | None, seed: int) -> list[str]:
    """Return the texts of a JSON lines file with a `text` field, or a seeded subset in the file's order.

    Raises:
        DataError: if the file is missing or holds no text, or a line is not an object with one.
    """
    texts = [_parse_text(row, place) for place, row in read_rows(file)]
    if not texts:
        raise DataError(f"{file} has no texts; add lines with a 'text' field or remove the file")
    if limit is None:
        return texts
    ranked = sorted(range(len(texts)), key=lambda index: sha256(f"{seed}/{texts[index]}".encode()).digest())
    return [texts[index] for index in sorted(ranked[:limit])]


def _parse_text(row: Mapping[str, Any], place: str) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: field 'text' is {text!r}; give a text that is not empty")
    return text
