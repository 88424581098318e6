"""Expert statistics as one safetensors file: sums and maxima as tensors, the rest as its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from kedro.io import DatasetError
from safetensors import safe_open
from safetensors.numpy import save

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import ExpertStatistics, FloatArray, StatisticsParts, layout_from_json

PART_NUMBERS = ("ends", "num_tokens", "num_demonstrations")
"""What a file's metadata says of the parts; their sums are tensors."""


class StatisticsDataset(KeyedDataset):
    """Saves and loads `ExpertStatistics`; loading validates the sums again."""

    def save(self, data: ExpertStatistics) -> None:
        """Write the statistics atomically; a shard of them beside the place of the whole."""
        shard = data.provenance.get("shard")
        path = self.path.with_stem(f"{self.path.stem}-{shard.replace('/', '-of-')}") if shard else self.path
        described = {
            "domain": data.domain,
            "layout": asdict(data.layout),
            "num_tokens": data.num_tokens,
            "provenance": dict(data.provenance),
            "parts": data.parts and {name: getattr(data.parts, name) for name in PART_NUMBERS},
        }
        kinds = {"sums": data.sums, "maxima": data.maxima, "parts": data.parts.sums if data.parts else {}}
        arrays = {
            f"{kind}.{name}": np.ascontiguousarray(values)
            for kind, named in kinds.items()
            for name, values in named.items()
        }
        write_atomically(path, save(arrays, {"statistics": json.dumps(described)}))

    def follow_save(self, data: ExpertStatistics) -> None:
        """Count what was saved as there; a shard makes a whole of earlier shards count as missing."""
        if data.provenance.get("shard"):
            self.outdate()
        else:
            super().follow_save(data)

    def load(self) -> ExpertStatistics:
        """Read the statistics."""
        return self._read(self.path)

    def _read(self, path: Path) -> ExpertStatistics:
        with safe_open(path, framework="np") as file:
            described = json.loads(file.metadata()["statistics"])
            kinds: dict[str, dict[str, FloatArray]] = {"sums": {}, "maxima": {}, "parts": {}}
            for key in file.keys():  # noqa: SIM118 - no mapping
                kind, _, name = key.partition(".")
                kinds[kind][name] = file.get_tensor(key)
        numbers = described["parts"] and {name: tuple(values) for name, values in described["parts"].items()}
        return ExpertStatistics(
            domain=described["domain"],
            layout=layout_from_json(described["layout"]),
            sums=kinds["sums"],
            num_tokens=described["num_tokens"],
            provenance=described["provenance"],
            maxima=kinds["maxima"],
            parts=StatisticsParts(sums=kinds["parts"], **numbers) if numbers else None,
        )


class StatisticsShardsDataset(StatisticsDataset):
    """Loads the shards of one domain's statistics, in the order of their names."""

    def load(self) -> list[ExpertStatistics]:  # type: ignore[override]
        """Read all shards there are."""
        return [self._read(path) for path in sorted(self.path.parent.glob(f"{self.path.stem}-*-of-*"))]

    def save(self, data: object) -> None:
        """Refuse: each shard is saved as the statistics of its own run."""
        raise DatasetError("shards are saved one by one, by collect_<domain> with collect.shard")

    def _exists(self) -> bool:
        return self._key is not None
