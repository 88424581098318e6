"""`hc_smoe`: average linkage of the experts' mean outputs, members merged by frequency (HC-SMoE)."""

import numpy as np

from moe_compress.methods._agglomerate import squared_distances
from moe_compress.methods._linkage import cluster_layers, layer_joins
from moe_compress.methods._merging import MergeParameters, merge_layer, merge_values
from moe_compress.types import Budget, CompressionPlan, ExpertStatistics, FloatArray, MergeTrees

STATISTICS: tuple[str, ...] = ("embedding", "count")
PARAMETERS = MergeParameters


def plan(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: MergeParameters) -> CompressionPlan:
    """Return the plan that merges experts whose mean outputs are close, by euclidean distance."""
    layout = statistics.layout
    values_LE = merge_values(parameters.merge_weights, parameters.score, statistics, seed)
    groups = tuple(
        merge_layer(clusters, values_E, own_ED @ own_ED.T, parameters, (seed, layer))
        for clusters, values_E, own_ED, layer in zip(
            cluster_layers(_distances(statistics), budget, layout, seed),
            values_LE,
            statistics["embedding"],
            layout.layers,
            strict=True,
        )
    )
    return CompressionPlan(layout, groups, "hc_smoe", values_LE)


def trees(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: MergeParameters) -> MergeTrees:
    """Return the linkage that `plan` cuts, heights as shares of the layer's highest: sums have no unit."""
    joins = layer_joins(_distances(statistics), budget, statistics.layout, seed)
    for layer in joins:
        layer[:, 2] /= layer[:, 2].max(initial=np.finfo(np.float64).tiny)
    return MergeTrees("distance of mean outputs over the largest", True, statistics.layout.num_experts, joins)


def _distances(statistics: ExpertStatistics) -> list[FloatArray]:
    embedding_LED, counts = statistics["embedding"], statistics.layout.num_experts
    return [np.sqrt(squared_distances(embedding_LED[row, :experts])) for row, experts in enumerate(counts)]
