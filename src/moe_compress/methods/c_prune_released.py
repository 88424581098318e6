"""`c_prune_released`: C-Prune as its authors published it: experts are clustered batch by batch, and vote."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moe_compress.errors import ParameterError
from moe_compress.methods._choose import choose_groups
from moe_compress.methods._released_clusters import cluster_batch
from moe_compress.methods._released_votes import count_votes, prune_each_layer, prune_over_layers
from moe_compress.methods._stages import Rates
from moe_compress.types import Budget, CompressionPlan, ExpertStatistics, MoELayout, pruning_groups

STATISTICS: tuple[str, ...] = ("pooled_gram",)


class PARAMETERS(Rates):
    """The published run's parameters.

    Attributes:
        clusters: clusters of a layer in each batch.
        global_clusters: clusters over all layers in each batch; the published run has 12 in both.
    """

    clusters: int = Field(12, ge=1)
    global_clusters: int = Field(12, ge=1)


def plan(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: PARAMETERS) -> CompressionPlan:
    """Return the plan of both stages of votes.

    With `follow: rates` it is the published code's, uneven layers and all. With `follow: budget` its votes are
    scores: every expert that the layer stage leaves is above every one it prunes, and the global votes order the
    first, the layer's the second.

    Raises:
        ParameterError: if the budget does not fit, or layers have different numbers of experts.
        PlanError: if the rates leave a layer with fewer experts than the router picks.
        StatisticsError: if `pooled_gram`, `[L, E, batches, L, E]`, was not collected.
    """
    layout, gram_LEBLE = statistics.layout, statistics["pooled_gram"]
    experts, batches = _experts_per_layer(layout), range(gram_LEBLE.shape[2])
    layers = {
        layer: [cluster_batch(gram_LEBLE[row, :, batch, row], parameters.clusters) for batch in batches]
        for row, layer in enumerate(layout.layers)
    }
    pruned = prune_each_layer(layers, parameters.layer_rate)
    left_LE = ~np.array([np.isin(np.arange(experts), pruned[layer]) for layer in layout.layers])
    over = [
        cluster_batch(gram_LEBLE[:, :, batch][left_LE][:, left_LE], parameters.global_clusters) for batch in batches
    ]
    scores_LE = np.zeros(left_LE.shape)
    for row, layer in enumerate(layout.layers):
        scores_LE[row] = count_votes(layers[layer], experts, parameters.layer_rate)
    scores_LE[left_LE] = scores_LE.max() + 1 + np.array(count_votes(over, experts, parameters.global_rate))
    if parameters.follow == "budget":
        groups = choose_groups(scores_LE, layout, budget, seed)
    else:
        gone = prune_over_layers(over, pruned, experts, parameters.layer_rate, parameters.global_rate)
        groups = tuple(pruning_groups(sorted(set(range(experts)) - set(gone[layer]))) for layer in layout.layers)
    return CompressionPlan(layout, groups, "c_prune_released", scores_LE)


def _experts_per_layer(layout: MoELayout) -> int:
    if not layout.is_uniform:
        raise ParameterError(
            f"layers have between {min(layout.num_experts)} and {max(layout.num_experts)} experts, and the "
            "published code counts on one number; use c_prune"
        )
    return layout.num_experts[0]
