"""What serving engines are expected to do with a checkpoint, as JSON, with the sources of each reason."""

from __future__ import annotations

import json

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import EngineVerdict, Reason, as_json


class CompatibilityDataset(KeyedDataset):
    """Saves and loads the engines' verdicts."""

    def save(self, data: tuple[EngineVerdict, ...]) -> None:
        """Write the verdicts atomically."""
        write_atomically(self.path, json.dumps(as_json(data), indent=1).encode())

    def load(self) -> tuple[EngineVerdict, ...]:
        """Read the verdicts."""
        return tuple(
            EngineVerdict(**{**each, "reasons": tuple(Reason(**reason) for reason in each["reasons"])})
            for each in json.loads(self.path.read_text())
        )
