"""`reap_sum`: gate weight times output norm, summed; EASY-EP without its token contribution."""

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("gate_norm",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `sum_t g_it ||e_it||`, float64 `[L, E]`."""
    return statistics["gate_norm"]
