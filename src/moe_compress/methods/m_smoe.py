"""`m_smoe`: the most used experts each take in the experts the router treats most like them (M-SMoE)."""

import numpy as np

from moe_compress.methods._agglomerate import cosine
from moe_compress.methods._choose import choose_groups
from moe_compress.methods._merging import MergeParameters, merge_layer, merge_values
from moe_compress.types import Budget, CompressionPlan, ExpertStatistics, FloatArray

STATISTICS: tuple[str, ...] = ("count", "logit_gram")
PARAMETERS = MergeParameters


def plan(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: MergeParameters) -> CompressionPlan:
    """Return the plan whose clusters each have one dominant expert: one the router picked most often."""
    layout = statistics.layout
    values_LE = merge_values(parameters.merge_weights, parameters.score, statistics, seed)
    chosen = choose_groups(statistics["count"], layout, budget, seed)
    groups = []
    for row, (layer, experts) in enumerate(zip(layout.layers, layout.num_experts, strict=True)):
        dominant = [group.members[0] for group in chosen[row]]
        alike_EE = cosine(statistics["logit_gram"][row, :experts, :experts])
        clusters = join_dominant(alike_EE, dominant, experts // layout.num_groups, (seed, layer))
        products_EE = statistics["logit_gram"][row, :experts, :experts]
        groups.append(merge_layer(clusters, values_LE[row], products_EE, parameters, (seed, layer)))
    return CompressionPlan(layout, tuple(groups), "m_smoe", statistics["count"])


def join_dominant(
    alike_EE: FloatArray, dominant: list[int], group_size: int, seed: tuple[int, ...]
) -> list[list[int]]:
    """Return one cluster per dominant expert, in their order.

    Every other expert joins the most similar dominant one of its own router group; equally similar ones are
    ordered by a seeded draw.

    Args:
        alike_EE: similarity of the experts' router logits over tokens.
        dominant: the experts that stay.
        group_size: experts of one router group, all of the layer when the router has none.
        seed: of the draw.
    """
    drawn = np.random.default_rng(list(seed)).permutation(dominant)
    home_E = np.arange(len(alike_EE)) // group_size
    allowed_ED = home_E[:, None] == home_E[drawn]
    joined_E = drawn[np.where(allowed_ED, alike_EE[:, drawn], -np.inf).argmax(axis=1)]
    joined_E[dominant] = dominant
    return [np.flatnonzero(joined_E == expert).tolist() for expert in dominant]
