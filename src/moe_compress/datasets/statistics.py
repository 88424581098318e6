"""Expert statistics as one safetensors file: sums and maxima as tensors, the rest as its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.types import ExpertStatistics, FloatArray, MoELayout, StatisticsParts

PART_NUMBERS = ("ends", "num_tokens", "num_demonstrations")
"""What a file's metadata says of the parts; their sums are tensors."""


class StatisticsDataset(KeyedDataset):
    """Saves and loads `ExpertStatistics`; loading validates the sums again."""

    def save(self, data: ExpertStatistics) -> None:
        """Write the statistics atomically."""
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
        write_atomically(self.path, save(arrays, {"statistics": json.dumps(described)}))

    def load(self) -> ExpertStatistics:
        """Read the statistics."""
        with safe_open(self.path, framework="np") as file:
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


def layout_from_json(value: dict[str, object]) -> MoELayout:
    """Return the layout that `dataclasses.asdict` described."""
    return MoELayout(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})  # type: ignore[arg-type]
