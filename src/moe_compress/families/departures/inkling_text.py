"""Its router weighs shared experts behind the routed ones; a convolution over tokens follows the block."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(has_rows_after_experts=True, passages=(("mlp_sconv", "linear"),), interleaves_on_disk=True)
