"""The block scales its experts' sum itself."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(routed_scale=lambda layer: layer.mlp.routed_scaling_factor)
