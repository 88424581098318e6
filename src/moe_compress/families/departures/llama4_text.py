"""The router's score multiplies what an expert reads, not what it gives."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(scales_input=True)
