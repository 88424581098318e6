"""Inkling's router weighs the shared experts too: their rows stand behind the routed experts' and stay."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(has_rows_after_experts=True)
