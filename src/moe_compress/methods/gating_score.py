"""`gating_score`: the sum of the expert's gate weights (EASY-EP, "Gating Score")."""

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("gate",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `sum_t g_it`, float64 `[L, E]`."""
    return statistics["gate"]
