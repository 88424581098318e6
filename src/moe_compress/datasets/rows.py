"""Tables of examples that people bring (JSON lines, CSV or Parquet), read with Hugging Face `datasets`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from moe_compress.errors import DataError

COLUMNS = ("question", "answer")
READERS = {".jsonl": "from_json", ".json": "from_json", ".csv": "from_csv", ".parquet": "from_parquet"}


def find_rows(filepath: Path) -> Path | None:
    """Return the file of this name that is there, with its own ending or another known one."""
    endings = (filepath.suffix, *READERS)
    return next((path for path in map(filepath.with_suffix, endings) if path.is_file()), None)


class RowsDataset(AbstractDataset[Any, Any]):
    """Loads a `datasets.Dataset` from `filepath`, or from the same name with another known ending.

    A catalog pattern can thus say `demonstrations.jsonl` while a user brings `demonstrations.csv`.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    @property
    def path(self) -> Path:
        """The file that is there.

        Raises:
            DataError: if no ending leads to a file.
        """
        found = find_rows(self._filepath)
        if found:
            return found
        raise DataError(
            f"no {self._filepath.stem} at {self._filepath}; put a file there with columns "
            f"'question' and 'answer' (endings: {', '.join(READERS)})"
        )

    def load(self) -> Any:
        """Return the rows.

        Raises:
            DataError: if the file is missing, empty, cannot be read as its ending says, or lacks a column.
        """
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        path = self.path
        if not path.read_bytes().strip():
            raise DataError(f"{path} is empty; add rows with 'question' and 'answer'")
        # A cache of its own, so that an edited file is never served from an older reading.
        with tempfile.TemporaryDirectory() as cache:
            try:
                rows = getattr(Dataset, READERS[path.suffix])(str(path), cache_dir=cache, keep_in_memory=True)
            except Exception as error:  # pyarrow and pandas raise many kinds for one cause
                raise DataError(f"{path} cannot be read as {path.suffix[1:]} rows; check it: {error}") from error
        for column in COLUMNS:
            if column not in rows.column_names:
                raise DataError(
                    f"{path} has no column '{column}' but {', '.join(map(repr, rows.column_names))}; rename one"
                )
        return rows

    def save(self, data: Any) -> None:
        """Refuse: the rows are an input."""
        raise DatasetError(f"{self._filepath} is an input and is not written by a pipeline")

    def _exists(self) -> bool:
        return find_rows(self._filepath) is not None

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
