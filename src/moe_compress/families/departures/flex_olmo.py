"""No norm before the block, one after it: the block reads the residual stream itself."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(residual="block_input", passages=(("post_feedforward_layernorm", "norm"),))
