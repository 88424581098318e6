"""The norm's output is the residual stream, and both it and the experts' sum are weighted."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(
    residual="block_input",
    routed_scale=lambda layer: layer.mlp_beta_factor,
    stream_scales=lambda layer: (layer.mlp_alpha_factor, 1.0),
)
