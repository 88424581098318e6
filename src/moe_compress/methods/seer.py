"""`seer`: the router's softmax over all experts, summed over all tokens (SEER-MoE's soft counting)."""

from moe_compress.types import ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("router_probability",)


def score(statistics: ExpertStatistics, seed: int) -> FloatArray:
    """Return `sum_t softmax(router logits)_i`, float64 `[L, E]`.

    SEER-MoE ranks over all layers together: a budget with scope `global` does that. Every layer's sum is the
    number of tokens, so dividing by it leaves the ranking as it is. Scope `per_layer` ranks inside each layer.
    """
    return statistics["router_probability"]
