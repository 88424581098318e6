"""Held-out texts of a domain, for perplexity: always the same ones for a file, a limit and a seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_compress.errors import DataError
from moe_compress.evaluation.tasks import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def read_heldout(folder: Path, domains: Iterable[str], limit: int | None, seed: int) -> dict[str, list[str]]:
    """Return domain -> its held-out texts, of those that have some; `folder` holds a folder per domain.

    Raises:
        DataError: see `read_texts`.
    """
    files = {domain: folder / domain / "heldout.jsonl" for domain in domains}
    return {domain: read_texts(file, limit, seed) for domain, file in files.items() if file.is_file()}


def take_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int, seed: int) -> list[str]:
    """Return texts in a seeded order until they have so many tokens; a file's order may be by kind."""
    ranked = sorted(texts, key=lambda text: sha256(f"{seed}/{text}".encode()).digest())
    taken, count = [], 0
    for text, ids in zip(ranked, tokenizer(ranked, verbose=False)["input_ids"], strict=True):
        if count >= tokens:
            break
        taken.append(text)
        count += len(ids)
    return taken


def _parse_text(row: Mapping[str, Any], place: str) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: field 'text' is {text!r}; give a text that is not empty")
    return text
