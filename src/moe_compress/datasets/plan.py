"""A compression plan as readable JSON: per layer the groups and scores, with lineage and a digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.plans.document import read_document, write_document
from moe_compress.types import CompressionPlan


class PlanDataset(KeyedDataset):
    """Saves and loads `CompressionPlan`; loading checks the digest."""

    def save(self, data: CompressionPlan) -> None:
        """Write the plan atomically."""
        write_atomically(self.path, write_document(data).encode())

    def load(self) -> CompressionPlan:
        """Read the plan.

        Raises:
            PlanError: if the file's groups are not those its digest was made from.
        """
        return read_plan(self.path)


class NewestPlansDataset(AbstractDataset[dict[str, CompressionPlan], dict[str, CompressionPlan]]):
    """Loads every domain's newest plan: domain -> plan, from a folder of `<domain>/<key>/plan.json`."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> dict[str, CompressionPlan]:
        """Read the plans there are."""
        return {domain: read_plan(path) for domain, path in find_newest(self._filepath).items()}

    def save(self, data: dict[str, CompressionPlan]) -> None:
        """Refuse: each plan is saved by its own run."""
        raise DatasetError(f"{self._filepath} collects the plans of all runs and is not written itself")

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


def find_newest(folder: Path) -> dict[str, Path]:
    """Return domain -> the file of its newest plan in a folder of `<domain>/<key>/plan.json`."""
    newest = {}
    for path in sorted(folder.glob("*/*/plan.json"), key=lambda path: path.stat().st_mtime_ns):
        newest[path.parts[-3]] = path
    return dict(sorted(newest.items()))


def read_plan(path: Path) -> CompressionPlan:
    """Return the plan of a JSON file.

    Raises:
        PlanError: if it is no plan, or its groups are not those its digest was made from.
    """
    return read_document(path.read_text(), str(path))
