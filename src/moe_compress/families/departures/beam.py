"""Stream and normed block output are added with weights that depend on the depth; the block scales by itself."""

import math
from typing import Any

from moe_compress.families.departures import Departure


def _scale_by_depth(layer: Any) -> tuple[float, float]:
    depth = layer.mlp_residual_add_idx
    return math.sqrt((depth - 1) / depth), 1 / math.sqrt(depth)


DEPARTURE = Departure(
    passages=(("post_feedforward_layernorm", "norm"),),
    routed_scale=lambda layer: layer.mlp.routed_scaling_factor,
    stream_scales=_scale_by_depth,
)
