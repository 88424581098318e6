"""Experts run beside the dense part of the layer, and their sum is added at its end."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(residual="layer_output")
