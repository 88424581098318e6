"""Evaluation results as JSON with every item, so that two models can be compared pairwise later."""

from __future__ import annotations

import json

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import EvaluationResult, ItemResult, WrittenText, as_json


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
