"""`reap`: the mean of gate weight times output norm over the expert's own tokens (arXiv:2510.13999)."""

import numpy as np

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("gate_norm", "count")


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `sum_t g_it ||e_it|| / N_i`, float64 `[L, E]`; 0 where no token came."""
    return statistics["gate_norm"] / np.maximum(statistics["count"], 1.0)
