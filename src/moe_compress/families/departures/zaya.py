"""ZAYA's router may skip the layer: the row of that choice stands behind the experts' and stays."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(
    has_rows_after_experts=True,
    unobserved="its router may choose to skip the experts, which is handed out as expert 0",
)
