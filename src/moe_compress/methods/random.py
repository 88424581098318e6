"""`random`: a seeded permutation of the experts, the baseline of both papers."""

import numpy as np

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("count",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return a seeded permutation of `0..E-1` per layer, float64 `[L, E]`."""
    rows, experts = statistics["count"].shape
    order = [np.random.default_rng([seed, row, experts]).permutation(experts) for row in range(rows)]
    return np.stack(order).astype(np.float64)
