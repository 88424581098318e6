"""The result of a sweep as JSON: every plan that was tried, and the choice."""

from __future__ import annotations

import json
from pathlib import Path

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import SweepCheck, SweepEntry, SweepResult, as_json


class SweepDataset(KeyedDataset):
    """Saves and loads `SweepResult`."""

    def save(self, data: SweepResult) -> None:
        """Write the result atomically."""
        choice = {"choice": as_json(data.choice)} if data.choice else {}
        write_atomically(self.path, json.dumps({**choice, **as_json(data)}, indent=1).encode())

    def load(self) -> SweepResult:
        """Read the result."""
        return read_sweep(self.path)


def read_sweep(path: Path) -> SweepResult:
    """Return the result of a JSON file."""
    content = json.loads(path.read_text())
    content.pop("choice", None)
    entries = tuple(
        SweepEntry(
            **{
                **entry,
                "experts": tuple(entry["experts"]),
                "interval": tuple(entry["interval"]),
                "failures": tuple(entry["failures"]),
            }
        )
        for entry in content.pop("entries")
    )
    check = content.pop("check")
    base_interval, not_judged = (tuple(content.pop(name)) for name in ("base_interval", "not_judged"))
    return SweepResult(
        entries=entries,
        check=SweepCheck(**check) if check else None,
        base_interval=base_interval,
        not_judged=not_judged,
        **content,
    )
