"""Several residual streams side by side in one vector: each gets the block's output with a weight of its own."""

from typing import Any

from moe_compress.families.departures import Departure


def _split_streams(streams: Any, outputs: Any) -> tuple[Any, Any]:
    _, mixed, weights = outputs
    return mixed.unflatten(-1, (weights.shape[-1], -1)), weights


DEPARTURE = Departure(streams=("mlp_hyper_connection", _split_streams))
