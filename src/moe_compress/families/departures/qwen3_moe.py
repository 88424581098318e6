"""Qwen3's configs count `num_experts` on the hub, which other engines read and transformers 5 does not save."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(count_aliases=("num_experts",))
