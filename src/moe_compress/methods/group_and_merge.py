"""`group_and_merge`: experts with similar weights merge into their mean (arXiv:2407.09590)."""

from moe_compress.methods._agglomerate import cosine
from moe_compress.methods._linkage import cluster_layers, layer_joins
from moe_compress.methods._merging import MergeParameters, MergeWeights, merge_layer, merge_values
from moe_compress.types import Budget, CompressionPlan, ExpertStatistics, FloatArray, MergeTrees

STATISTICS: tuple[str, ...] = ("weight_gram",)


class PARAMETERS(MergeParameters):
    """How members are weighted: all the same, as C-Prune's "Group&Merge" row has them, unless said otherwise."""

    merge_weights: MergeWeights = "uniform"


def plan(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: PARAMETERS) -> CompressionPlan:
    """Return the plan that merges experts by average linkage of `1 - cos` of their weights."""
    layout = statistics.layout
    clusters_L = cluster_layers(_distances(statistics), budget, layout, seed)
    values_LE = merge_values(parameters.merge_weights, parameters.score, statistics, seed)
    groups = tuple(
        merge_layer(clusters, values_E, gram_EE, parameters, (seed, layer))
        for clusters, values_E, gram_EE, layer in zip(
            clusters_L, values_LE, statistics["weight_gram"], layout.layers, strict=True
        )
    )
    return CompressionPlan(layout, groups, "group_and_merge", values_LE)


def trees(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: MergeParameters) -> MergeTrees:
    """Return the linkage that `plan` cuts."""
    joins = layer_joins(_distances(statistics), budget, statistics.layout, seed)
    return MergeTrees("1 less the cosine of weights", True, statistics.layout.num_experts, joins)


def _distances(statistics: ExpertStatistics) -> list[FloatArray]:
    grams_LEE, counts = statistics["weight_gram"], statistics.layout.num_experts
    return [1 - cosine(gram_EE[:experts, :experts]) for gram_EE, experts in zip(grams_LEE, counts, strict=True)]
