"""Phi-3.5-MoE's router compares the best two experts, whatever the config says."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(top_k=2)
