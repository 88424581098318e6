"""`frequency`: how many tokens the router sent to the expert (EASY-EP, "Frequency")."""

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("count",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `N_i`, float64 `[L, E]`."""
    return statistics["count"]
