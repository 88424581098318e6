"""A folder that is handed on by its path, because what reads it streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from moe_compress.errors import DataError


class FolderDataset(AbstractDataset[Path, Path]):
    """Loads as the path of an existing folder."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Path:
        """Return the folder's path.

        Raises:
            DataError: if there is no such folder.
        """
        if not self._filepath.is_dir():
            raise DataError(f"no folder {self._filepath}; create it or change its path in the catalog")
        return self._filepath

    def save(self, data: Path) -> None:
        """Refuse: the folder is an input."""
        raise DatasetError(f"{self._filepath} is an input and is not written by a pipeline")

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
