"""Several residual streams: they are mixed, and each gets the block's output with a weight of its own."""

from typing import Any

from moe_compress.families.departures import Departure


def mix_streams(streams: Any, outputs: Any) -> tuple[Any, Any]:
    """Return the mixed streams `[B, S, N, D]` and the weights `[B, S, N]` of the block's output in them."""
    weights, mixing, _ = outputs
    return mixing.to(streams.dtype).transpose(-1, -2) @ streams, weights


DEPARTURE = Departure(streams=("ffn_hc", mix_streams))
