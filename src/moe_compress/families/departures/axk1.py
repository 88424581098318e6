"""The block ends with a norm over routed and shared experts together."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(passages=(("mlp.post_mlp_layernorm", "norm"),))
