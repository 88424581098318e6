"""Expert statistics as one safetensors file: the sums as tensors, the rest as its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import ExpertStatistics, MoELayout


class StatisticsDataset(KeyedDataset):
    """Saves and loads `ExpertStatistics`; loading validates the sums again."""

    def save(self, data: ExpertStatistics) -> None:
        """Write the statistics atomically."""
        described = {
            "domain": data.domain,
            "layout": asdict(data.layout),
            "num_tokens": data.num_tokens,
            "provenance": dict(data.provenance),
        }
        sums = {name: np.ascontiguousarray(values) for name, values in data.sums.items()}
        write_atomically(self.path, save(sums, {"statistics": json.dumps(described)}))

    def load(self) -> ExpertStatistics:
        """Read the statistics."""
        with safe_open(self.path, framework="np") as file:
            described = json.loads(file.metadata()["statistics"])
            sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return ExpertStatistics(
            domain=described["domain"],
            layout=layout_from_json(described["layout"]),
            sums=sums,
            num_tokens=described["num_tokens"],
            provenance=described["provenance"],
        )


def layout_from_json(value: dict[str, object]) -> MoELayout:
    """Return the layout that `dataclasses.asdict` described."""
    return MoELayout(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})  # type: ignore[arg-type]
