"""Several residual streams that are not mixed: each gets the block's output with a weight of its own."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(streams=("ffn_hc", lambda streams, outputs: (streams, outputs[0])))
