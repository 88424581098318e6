"""Experts work in a smaller space; their sum is projected, normed, and blended with the stream by a gate."""

from typing import Any

from moe_compress.families.departures import Departure


def _blend(layer: Any) -> tuple[Any, Any]:
    gate = layer.post_feedforward_residual_gate
    share = (gate.gate / gate.temperature).float().sigmoid()
    return ((1 - share) * (1 + share)).clamp(min=gate.eps).sqrt(), share


DEPARTURE = Departure(
    passages=(("mlp.post_expert_proj", "linear"), ("post_feedforward_layernorm", "norm")),
    stream_scales=_blend,
)
