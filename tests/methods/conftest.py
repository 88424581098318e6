"""Statistics with everything any method asks for, made from a layer that was never anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress.types import ExpertStatistics, MoELayout

LAYERS, EXPERTS, HIDDEN, SAMPLES, BATCHES = 3, 16, 6, 10, 2


def draw_sums(seed, layers=LAYERS, experts=EXPERTS, top_k=2):
    """Return random sums without ties; counts are a permutation of 1..E, which the tokens follow from."""
    rng = np.random.default_rng(seed)
    names = ("gate", "norm", "gate_norm", "gate_norm_change", "gate_change", "router_probability")
    sums = {name: rng.gamma(2.0, size=(layers, experts)) for name in names}
    sums["count"] = np.stack([rng.permutation(experts) + 1.0 for _ in range(layers)])
    sums["embedding"] = rng.normal(size=(layers, experts, HIDDEN)) + rng.normal(size=(layers, 1, HIDDEN))
    for name, width in (("logit_gram", 40), ("weight_gram", 30), ("coactivation", 40)):
        vectors = rng.normal(size=(layers, experts, width))
        sums[name] = vectors @ vectors.transpose(0, 2, 1)
    pooled = rng.normal(size=(layers * experts, BATCHES, SAMPLES * HIDDEN))
    gram = np.einsum("xbv,ybv->xby", pooled, pooled)
    sums["pooled_gram"] = gram.reshape(layers, experts, BATCHES, layers, experts)
    order = np.stack([rng.permutation(experts) for _ in range(layers)])
    sums["elimination_rank"] = np.minimum(order, experts - top_k).astype(float)
    errors = rng.gamma(1.0, size=(layers, experts)).cumsum(axis=1)
    sums["elimination_error"] = errors - errors[:, :1]
    return sums


def statistics_from(sums, num_groups=1, topk_groups=1, top_k=2):
    layers, experts = sums["count"].shape
    layout = MoELayout(tuple(range(1, layers + 1)), (experts,) * layers, top_k, num_groups, topk_groups)
    return ExpertStatistics("toy", layout, sums, int(sums["count"][0].sum()) // top_k)


@pytest.fixture
def make_statistics():
    def make(seed=0, num_groups=1, topk_groups=1, **shape):
        return statistics_from(draw_sums(seed, **shape), num_groups, topk_groups)

    return make


@pytest.fixture
def permute_experts():
    """Return the same statistics with experts in another order."""

    def permute(statistics, order):
        sums = {}
        for name, values in statistics.sums.items():
            if name == "elimination_error":  # counts experts gone, and knows none by name
                sums[name] = values
            elif name == "pooled_gram":
                sums[name] = values[:, order][..., order]
            elif name in ("logit_gram", "weight_gram", "coactivation"):
                sums[name] = values[:, order][:, :, order]
            else:
                sums[name] = values[:, order]
        return ExpertStatistics("toy", statistics.layout, sums, statistics.num_tokens)

    return permute
