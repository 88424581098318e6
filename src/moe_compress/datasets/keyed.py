"""Outputs that live under the key of everything they were made from, so a re-run never mixes old and new."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

KEY_LENGTH = 12
"""Hex digits of a key that name a folder; 48 bits are plenty for the runs of one project."""


class KeyedDataset(AbstractDataset[Any, Any]):
    """A file or folder `filepath/<key>/basename`, whose key is set before the run by `bind`.

    Args:
        filepath: the folder that holds one sub-folder per key.
        basename: what is written inside.
        stage: which of the run's keys names the sub-folder.
    """

    def __init__(self, filepath: str, basename: str, stage: str, metadata: dict[str, Any] | None = None):
        self._filepath, self._basename, self._stage = Path(filepath), basename, stage
        self._key: str | None = None
        self.metadata = metadata

    def bind(self, keys: Mapping[str, str]) -> None:
        """Set the key of this dataset's stage from the run's keys, stage name -> hex digest."""
        self._key = keys[self._stage]

    @property
    def path(self) -> Path:
        """Where the value lives in this run.

        Raises:
            DatasetError: outside a run, when no key is bound.
        """
        if self._key is None:
            raise DatasetError(
                f"{self._basename} under {self._filepath} has no key outside a run; load it in a kedro run"
            )
        return self._filepath / self._key[:KEY_LENGTH] / self._basename

    @property
    def _mark(self) -> Path:
        """Lies beside a value that was made from something older than what there is now."""
        assert self._key is not None
        return self._filepath / self._key[:KEY_LENGTH] / f".{self._basename}.outdated"

    @property
    def is_outdated(self) -> bool:
        """Whether a value is there and counts as missing."""
        return self._mark.exists()

    def outdate(self) -> None:
        """Have the value, if there is one, count as missing until one is saved, by this run or another."""
        if self._exists():
            self._mark.touch()

    def follow_save(self, data: Any) -> None:
        """Count what was just saved as there."""
        self._mark.unlink(missing_ok=True)

    def has_earlier(self) -> bool:
        """Whether any run, under whatever key, left a value here."""
        return any(self._filepath.glob(f"*/{self._basename}"))

    def _exists(self) -> bool:
        return self._key is not None and self.path.exists() and not self.is_outdated

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "basename": self._basename, "stage": self._stage}


class RunKeysDataset(AbstractDataset[Mapping[str, str], Mapping[str, str]]):
    """The run's keys themselves, stage name -> hex digest, for nodes that record lineage."""

    def __init__(self, metadata: dict[str, Any] | None = None):
        self._keys: Mapping[str, str] | None = None
        self.metadata = metadata

    def bind(self, keys: Mapping[str, str]) -> None:
        """Set the run's keys."""
        self._keys = dict(keys)

    def load(self) -> Mapping[str, str]:
        """Return the keys.

        Raises:
            DatasetError: outside a run.
        """
        if self._keys is None:
            raise DatasetError("run keys exist only during a run; start one with kedro run")
        return self._keys

    def save(self, data: Mapping[str, str]) -> None:
        """Refuse: keys are derived, never saved."""
        raise DatasetError("run keys are derived from a run's inputs and cannot be saved")

    def _exists(self) -> bool:
        return self._keys is not None

    def _describe(self) -> dict[str, Any]:
        return {"keys": self._keys}
