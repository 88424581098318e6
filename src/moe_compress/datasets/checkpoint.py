"""A checkpoint folder: loads as a reference with digests, saves by streaming a planned rewrite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from moe_compress.checkpoint.digest import settings_digest, weights_digest
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import CheckpointReference


class CheckpointDataset(AbstractDataset[CheckpointReference, CheckpointReference]):
    """An input checkpoint in a local folder; its headers are checked before its digest is taken.

    Args:
        filepath: the folder.
        path: where digests of unchanged files are remembered.
    """

    def __init__(self, filepath: str, path: str, metadata: dict[str, Any] | None = None):
        self._folder, self._digests = Path(filepath), Path(path)
        self._reference: CheckpointReference | None = None
        self.metadata = metadata

    def load(self) -> CheckpointReference:
        """Return the folder with its digests; they are taken once a run.

        Raises:
            CheckpointError: if a file is missing or damaged.
        """
        if self._reference is None:
            read_index(self._folder)
            self._reference = refer_to(self._folder, self._digests)
        return self._reference

    def save(self, data: CheckpointReference) -> None:
        """Refuse: the checkpoint is an input."""
        raise DatasetError(f"{self._folder} is an input and is not written by a pipeline")

    def _exists(self) -> bool:
        return (self._folder / "config.json").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


class KeyedCheckpointDataset(KeyedDataset):
    """A compressed checkpoint under its run's key; saving streams it and publishes it by one rename."""

    def save(self, data: CheckpointRewrite) -> None:
        """Stream the rewrite into place.

        Raises:
            CheckpointError: if the disk is too small or the written files are not what was planned.
        """
        write_checkpoint(data, self.path)

    def load(self) -> CheckpointReference:
        """Return the folder with its digests."""
        return refer_to(self.path, None)


def refer_to(folder: Path, digests: Path | None) -> CheckpointReference:
    """Return a reference to a checkpoint folder, reading each weight file once unless its digest is known."""
    return CheckpointReference(
        path=folder,
        name=folder.name,
        weights_digest=weights_digest(folder, digests),
        settings_digest=settings_digest(folder),
    )
