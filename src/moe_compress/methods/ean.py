"""`ean`: expert activation norm, the summed length of the expert's outputs over its own tokens."""

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("norm",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `sum_t ||e_it||` over routed tokens, float64 `[L, E]`."""
    return statistics["norm"]
