"""Attention and experts run side by side on the layer's input; routed and shared experts may be averaged."""

from typing import Any

from moe_compress.families.departures import Departure


def _halve_average(layer: Any) -> float:
    block = layer.mlp
    is_average = block.num_shared_experts > 0 and block.shared_expert_combination_strategy == "average"
    return 0.5 if is_average else 1.0


DEPARTURE = Departure(residual="layer_input", routed_scale=_halve_average)
