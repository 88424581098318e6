"""A compression plan as readable JSON: per layer the groups and scores, with lineage and a digest."""

from __future__ import annotations

import json

import numpy as np

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.datasets.statistics import layout_from_json
from moe_compress.errors import PlanError
from moe_compress.types import CompressionPlan, ExpertGroup, as_json


class PlanDataset(KeyedDataset):
    """Saves and loads `CompressionPlan`; loading checks the digest."""

    def save(self, data: CompressionPlan) -> None:
        """Write the plan atomically."""
        content = {**as_json(data), "kept": as_json(data.kept), "digest": data.digest}
        write_atomically(self.path, json.dumps(content, indent=1).encode())

    def load(self) -> CompressionPlan:
        """Read the plan.

        Raises:
            PlanError: if the file's groups are not those its digest was made from.
        """
        content = json.loads(self.path.read_text())
        plan = CompressionPlan(
            layout=layout_from_json(content["layout"]),
            groups=tuple(tuple(_group(group) for group in groups) for groups in content["groups"]),
            method=content["method"],
            scores=None if content["scores"] is None else np.array(content["scores"], dtype=np.float64),
            provenance=content["provenance"],
        )
        if plan.digest != content["digest"]:
            raise PlanError(
                f"{self.path} was changed after it was planned: its digest is {content['digest'][:12]}, "
                f"its groups give {plan.digest[:12]}; delete the file and run again"
            )
        return plan


def _group(value: dict[str, list[float]]) -> ExpertGroup:
    return ExpertGroup(tuple(int(m) for m in value["members"]), tuple(value["weights"]))
