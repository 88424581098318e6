"""What its MoE block gives goes through a norm before it is added."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(passages=(("post_mlp_layernorm", "norm"),))
