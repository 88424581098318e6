"""Experts stand in the decoder layer itself, and two norms follow: their own and one over the dense part too."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(
    passages=(("post_feedforward_layernorm_2", "norm"), ("post_feedforward_layernorm", "norm")),
    are_logits_probabilities=True,
)
