"""Digests of what a stage's output depends on: files, installed libraries, and this package's own code."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import moe_compress
from moe_compress.types import digest_of


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes; a file that is not there has the digest `absent`."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"


def versions(*libraries: str) -> dict[str, str]:
    """Return the installed versions of libraries whose numbers a stage's output depends on, `absent` for others."""
    return {library: _version(library) for library in libraries}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # a stage that needs it says so itself
        return "absent"


@cache
def source(*places: str) -> str:
    """Return a digest of the package's own code that a stage runs, so that a changed method runs again.

    Args:
        places: folders or files of this package.
    """
    root = Path(moe_compress.__file__).parent
    found = [root / place for place in places]
    files = sorted(path for place in found for path in (place.rglob("*.py") if place.is_dir() else [place]))
    return digest_of([[str(path.relative_to(root)), file_digest(path)] for path in files])
