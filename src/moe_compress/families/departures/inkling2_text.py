"""The stream passes a mixing of earlier layers before the norm, and a short convolution after the block."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(
    residual="argument",
    residual_child=("mlp_input", 1),
    passages=(("post_mlp_convolution", "linear"),),
    interleaves_on_disk=True,
)
