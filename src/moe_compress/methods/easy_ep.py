"""`easy_ep`: output-aware importance times token contribution (EASY-EP, "Expert Score")."""

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("gate_norm_change",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `I(E_i) = sum_t c_it s_t`, float64 `[L, E]`.

    `c_it = g_it ||e_it||` and `s_t = max(0, 1 - cos(h_t, h~_t))`. As in the authors' code, and not in the
    paper, `s_t` is cut at 0.
    """
    return statistics["gate_norm_change"]
