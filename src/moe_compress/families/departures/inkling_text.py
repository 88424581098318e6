"""A short convolution over neighbouring tokens stands between the block and the residual stream."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(passages=(("mlp_sconv", "linear"),))
