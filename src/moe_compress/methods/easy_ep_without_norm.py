"""`easy_ep_without_norm`: EASY-EP's ablation that leaves out the output norm ("w/o norm")."""

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("gate_change",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `sum_t g_it s_t` with `s_t = max(0, 1 - cos(h_t, h~_t))`, float64 `[L, E]`."""
    return statistics["gate_change"]
