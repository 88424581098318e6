"""A folder that is handed on by its path, because what reads it streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from moe_compress.errors import DataError


class FolderDataset(AbstractDataset[Path, Path]):
    """Loads as the path of a folder.

    Args:
        filepath: the folder.
        create: make it if it is not there, for a folder that nodes write into.
    """

    def __init__(self, filepath: str, create: bool = False, metadata: dict[str, Any] | None = None):
        self._filepath, self._create = Path(filepath), create
        self.metadata = metadata

    def load(self) -> Path:
        """Return the folder's path.

        Raises:
            DataError: if there is no such folder and it is not to be created.
        """
        if self._create:
            self._filepath.mkdir(parents=True, exist_ok=True)
        if not self._filepath.is_dir():
            raise DataError(f"no folder {self._filepath}; create it or change its path in the catalog")
        return self._filepath

    def save(self, data: Path) -> None:
        """Refuse: what is in the folder is written by the nodes that are handed its path."""
        raise DatasetError(f"{self._filepath} is a folder and is not saved as a value")

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
