"""Put a checkpoint into a store of artifacts once: an interrupted upload goes on, a finished one is found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_compress.errors import RegistryAwayError
from moe_compress.registry.client import without_credentials
from moe_compress.registry.mlmodel import FILE_NAME

_LARGE = (".safetensors",)
"""Files whose content the folder's address stands for; all others are small and sent again."""


def upload_checkpoint(folder: Path, address: str) -> str:
    """Copy a checkpoint folder to an address, such as `s3://bucket/checkpoints/moe-medical-<digests>`; returns it.

    Weight files that lie there in full already are skipped. `MLmodel` comes last, so that an address with one is
    whole.

    Args:
        folder: a checkpoint folder with its `MLmodel`.
        address: where to; it must stand for these weights and no others.

    Raises:
        RegistryAwayError: if the store does not take it now.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with storing(f"upload {folder} to {without_credentials(address)}"):
        store = get_artifact_repository(address)
        there = _sizes(store, None)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == FILE_NAME):
            place = path.relative_to(folder)
            if path.suffix in _LARGE and there.get(place.as_posix()) == path.stat().st_size:
                continue
            store.log_artifact(str(path), None if place.parent == Path() else place.parent.as_posix())
    return address


def _sizes(store: Any, folder: str | None) -> dict[str, int]:
    """Return path -> bytes of what lies below a folder of a store."""
    sizes: dict[str, int] = {}
    for found in store.list_artifacts(folder):
        sizes |= _sizes(store, found.path) if found.is_dir else {found.path: found.file_size}
    return sizes


@contextmanager
def storing(doing: str) -> Iterator[None]:
    """Turn whatever a store's own library raises inside the block into one sentence.

    Args:
        doing: what is attempted, for the message: `upload report.html`.

    Raises:
        RegistryAwayError: in place of what is raised, unless MLflow raised it.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException:
        raise
    except Exception as error:
        raise RegistryAwayError(f"could not {doing}: {without_credentials(str(error))}; try again") from error
