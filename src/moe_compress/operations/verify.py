"""Is a version still what was registered: every file hashed again, and what differs is named."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from moe_compress.checkpoint.checksums import find_damage, read_checksums
from moe_compress.checkpoint.digest import join_digests
from moe_compress.checkpoint.files import CHECKSUMS
from moe_compress.errors import CheckpointError, RegistryError
from moe_compress.registry.client import mlflow_client, without_credentials
from moe_compress.registry.mlmodel import FILE_NAME, check_mlmodel
from moe_compress.registry.upload import storing
from moe_compress.registry.versions import RegisteredVersion

logger = logging.getLogger(__name__)


def verify_version(version: RegisteredVersion, folder: Path | None = None) -> dict[str, Any]:
    """Return which files of a version are not what was registered, ready for JSON.

    The card (`README.md`) is not held against anything: it is written anew whenever the folder is released again.

    Args:
        version: the version.
        folder: a copy of its files; where it was registered if not given, fetched for as long as it takes from a
            store.

    Raises:
        RegistryError: if its files are a folder's of another machine, the store does not give them, or it was
            registered without checksums.
    """
    expected = version.tags.get("checksums_digest")
    if expected is None:
        raise RegistryError(
            f"{version.uri} has no tag checksums_digest, so there is nothing to hold its files against; run its "
            "pipeline again to register it with checksums"
        )
    with nullcontext(folder) if folder else fetched(version) as copy:
        num_files, damage = _find_damage(copy, expected, version.tags.get("candidate_weights_digest"))
    is_fetched = version.is_stored and not folder
    return {
        "version": version.uri,
        "folder": without_credentials(version.source) if is_fetched else str(copy),
        "files": num_files,
        "damaged": damage,
        "intact": not damage,
    }


def _find_damage(folder: Path, expected: str, expected_weights: str | None) -> tuple[int, dict[str, str]]:
    """Return the number of files that were held against their checksums, and what is wrong by file."""
    damage: dict[str, str] = {}
    files: dict[str, str] = {}
    try:
        files = read_checksums(folder)
        if hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest() != expected:
            damage[CHECKSUMS] = "its bytes changed, so what it says of other files may be wrong"
    except CheckpointError as error:
        damage[CHECKSUMS] = str(error)
    damage |= find_damage(folder, files) if files else {}
    if problem := check_mlmodel(folder):
        damage[FILE_NAME] = problem
    weights = join_digests({name: digest for name, digest in files.items() if name.endswith(".safetensors")})
    if files and CHECKSUMS not in damage and weights != expected_weights:
        damage[CHECKSUMS] = "it is not of the weights that the version's tags name"
    return len(files) + 2, damage


@contextmanager
def fetched(version: RegisteredVersion) -> Iterator[Path]:
    """Yield the folder of a version's files; those in a store are fetched for as long as the block lasts.

    Raises:
        RegistryError: if they are a folder's of another machine, or the store does not give them.
    """
    if not version.is_stored:
        yield version.folder
        return
    import mlflow

    with tempfile.TemporaryDirectory(prefix="moe-compress-") as place:
        size, source = int(version.tags.get("candidate_num_bytes", "0")) / 1e9, without_credentials(version.source)
        logger.warning("fetching %s (%.1f GB) from %s to %s to hash its files", version.uri, size, source, place)
        with mlflow_client(f"fetch {version.uri}"), storing(f"fetch {source} to {place}"):
            folder = mlflow.artifacts.download_artifacts(version.uri, dst_path=place)
        yield Path(folder)
