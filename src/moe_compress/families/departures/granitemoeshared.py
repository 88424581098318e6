"""The decoder layer multiplies what the block gives before adding it."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(routed_scale=lambda layer: layer.residual_multiplier)
