"""The router divides its weights by the number of experts a token gets, and the block multiplies it back."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(routed_scale=lambda layer: layer.mlp.num_experts)
