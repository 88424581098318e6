"""Evaluation results as JSON with every item, so that two models can be compared later; probes; speeds."""

from __future__ import annotations

import json

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import (
    EvaluationResult,
    ItemResult,
    LayerProbe,
    ProbeResult,
    Throughput,
    WrittenText,
    as_json,
    throughput_from_json,
)


class EvaluationDataset(KeyedDataset):
    """Saves and loads `EvaluationResult`; loading validates the items again."""

    def save(self, data: EvaluationResult) -> None:
        """Write the result atomically."""
        write_atomically(self.path, json.dumps(as_json(data)).encode())

    def load(self) -> EvaluationResult:
        """Read the result."""
        content = json.loads(self.path.read_text())
        items = tuple(
            ItemResult(**{**item, "log_likelihoods": tuple(item["log_likelihoods"])})
            for item in content.pop("items")
        )
        written = tuple(WrittenText(**text) for text in content.pop("written"))
        return EvaluationResult(items=items, written=written, **content)


class ProbesDataset(KeyedDataset):
    """Saves and loads `ProbeResult`."""

    def save(self, data: ProbeResult) -> None:
        """Write the result atomically."""
        write_atomically(self.path, json.dumps(as_json(data), indent=1).encode())

    def load(self) -> ProbeResult:
        """Read the result."""
        content = json.loads(self.path.read_text())
        layers = tuple(LayerProbe(**layer) for layer in content.pop("layers"))
        rows = content.pop("changed_rows")
        return ProbeResult(layers=layers, changed_rows=None if rows is None else tuple(rows), **content)


class SpeedsDataset(KeyedDataset):
    """Saves and loads the speeds of baseline and candidate, timed in one run."""

    def save(self, data: tuple[Throughput, Throughput]) -> None:
        """Write the speeds atomically."""
        write_atomically(self.path, json.dumps([as_json(each) for each in data], indent=1).encode())

    def load(self) -> tuple[Throughput, Throughput]:
        """Read the speeds; the sizes of batches are numbers again."""
        before, after = map(throughput_from_json, json.loads(self.path.read_text()))
        return before, after
