"""How C-Prune's published code turns clusters into pruned experts: votes, in each layer, then over all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp

from moe_compress.errors import ParameterError, StatisticsError

Clustered = Sequence[tuple[int, float]]
"""One batch's clusters: for each expert the label of its cluster and its distance to the cluster's centre."""

LayerClusters = Mapping[int, Sequence[Clustered]] | Mapping[str, Sequence[Clustered]]
"""Layer -> batches of clusters; JSON's layers are strings."""

LayerLists = Mapping[int, Sequence[int]] | Mapping[str, Sequence[int]]
"""Layer -> experts."""

MAX_SHARE = 0.9


def vote_coefficient(size: int, experts_per_layer: int) -> float:
    """Return what scales the number of votes of a cluster of `size` members.

    `0.5 + 0.6 (exp(0.5 - p) - exp(p - 0.5) / (exp(p - 0.5) + exp(0.5 - p)))` with `p = size / E`; it falls below
    0 for the large clusters of the global stage. In the published code only.
    """
    share = size / experts_per_layer
    rising, falling = exp(share - 0.5), exp(0.5 - share)
    return (falling - rising / (rising + falling)) * 0.6 + 0.5


def count_votes(batches: Sequence[Clustered], experts_per_layer: int, rate: float) -> list[int]:
    """Return how many votes each expert gets over all batches.

    In a cluster of fewer than 3 every member gets one; otherwise those closest to the centre do, equally close
    ones in order of expert, as many as the coefficient says; a negative number leaves out that many farthest.

    Args:
        batches: per batch, each expert's cluster and distance.
        experts_per_layer: experts of one layer before any is pruned, also in the global stage.
        rate: share to be pruned in this stage.

    Raises:
        StatisticsError: if there are no batches, or they have different numbers of experts.
    """
    if len(sizes := {len(batch) for batch in batches}) != 1:
        raise StatisticsError(
            f"the clusters' batches have {sorted(sizes)} experts; cluster the same experts in every batch"
        )
    votes = [0] * sizes.pop()
    for batch in batches:
        for members in _clusters(batch):
            for expert in _voted(members, batch, experts_per_layer, rate):
                votes[expert] += 1
    return votes


def _clusters(batch: Clustered) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for expert, (label, _) in enumerate(batch):
        members.setdefault(label, []).append(expert)
    return list(members.values())


def _voted(members: list[int], batch: Clustered, experts_per_layer: int, rate: float) -> list[int]:
    size = len(members)
    if size < 3:
        return members
    closest = sorted(members, key=lambda expert: batch[expert][1])
    return closest[: int(vote_coefficient(size, experts_per_layer) * (1 - rate) * size)]


def fewest_votes(votes: Sequence[int], rate: float) -> list[int]:
    """Return the `int(rate * len(votes))` experts with the fewest votes, fewest first.

    As in the published code, equal votes are ordered by expert and not by a seeded draw.
    """
    return sorted(range(len(votes)), key=votes.__getitem__)[: int(rate * len(votes))]


def prune_published(
    layer_clusters: LayerClusters,
    global_clusters: Sequence[Clustered],
    layer_rate: float,
    global_rate: float,
) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Return what a run of the published code prunes: in the stage inside the layers, and in both stages.

    Takes the JSON of the published run's two `*_unsupervised.json` files as it is. Layers that the run has no
    clusters of, as those without routed experts, are in neither result.

    Args:
        layer_clusters: layer -> batches -> `[label, distance]` of each expert.
        global_clusters: batches -> `[label, distance]` of each expert the first stage left, by layer and expert.
        layer_rate: share of each layer's experts that the first stage prunes.
        global_rate: share of what is left that the second prunes.

    Raises:
        ParameterError: if a rate is not a share.
        StatisticsError: if layers, or batches, are of different numbers of experts, or there are none.
    """
    layer_pruned = prune_each_layer(layer_clusters, layer_rate)
    experts = {len(batch) for batches in layer_clusters.values() for batch in batches}
    if len(experts) != 1:
        raise StatisticsError(
            f"the layers' clusters have {sorted(experts)} experts, and the published code counts on one number; "
            "give the clusters of one run"
        )
    gone = prune_over_layers(global_clusters, layer_pruned, experts.pop(), layer_rate, global_rate)
    return layer_pruned, gone


def prune_each_layer(layers: LayerClusters, rate: float) -> dict[int, tuple[int, ...]]:
    """Return layer -> pruned experts, ascending: the stage inside each layer.

    Args:
        layers: layer -> batches of clusters.
        rate: share of each layer's experts to prune.

    Raises:
        ParameterError: if `rate` is not a share.
        StatisticsError: if a layer has no batches, or they have different numbers of experts.
    """
    _check_rate("layer_rate", rate)
    return {
        int(layer): tuple(sorted(fewest_votes(count_votes(batches, len(next(iter(batches), ())), rate), rate)))
        for layer, batches in layers.items()
    }


def prune_over_layers(
    batches: Sequence[Clustered],
    layer_pruned: LayerLists,
    experts_per_layer: int,
    layer_rate: float,
    global_rate: float,
) -> dict[int, tuple[int, ...]]:
    """Return layer -> all pruned experts, ascending: the layer stage's and those of the stage over all layers.

    Args:
        batches: per batch, the clusters of what the layer stage left, in order of layer and expert.
        layer_pruned: what the layer stage pruned.
        experts_per_layer: experts of one layer before any is pruned.
        layer_rate: the rate of the layer stage, which the cap per layer is computed from.
        global_rate: share of what is left to prune.

    Raises:
        ParameterError: if a rate is not a share.
        StatisticsError: if the clusters are not of the experts the layer stage left.
    """
    _check_rate("layer_rate", layer_rate)
    _check_rate("global_rate", global_rate)
    votes = count_votes(batches, experts_per_layer, global_rate)
    first = {int(layer): pruned for layer, pruned in layer_pruned.items()}  # "10" would come before "9"
    left = [
        (layer, expert)
        for layer in sorted(first)
        for expert in range(experts_per_layer)
        if expert not in first[layer]
    ]
    if len(left) != len(votes):
        raise StatisticsError(
            f"the global clusters have {len(votes)} experts, but the layer stage left {len(left)}; "
            "cluster what it left"
        )
    more: dict[int, list[int]] = {layer: [] for layer in first}
    for index in fewest_votes(votes, global_rate):
        layer, expert = left[index]
        more[layer].append(expert)
    return {
        layer: tuple(sorted([*pruned, *_cap(more[layer], len(pruned), layer_rate)]))
        for layer, pruned in first.items()
    }


def _cap(more: list[int], already: int, layer_rate: float) -> list[int]:
    """Return what the global stage may take of one layer, fewest votes first.

    As in the published code, the cap holds for the global stage alone, so that both stages together may exceed
    it, and it follows from a floating-point floor division: 6 // 0.1 is 59, which gives 53.
    """
    return more[: int(already // layer_rate * MAX_SHARE)]


def _check_rate(name: str, rate: float) -> None:
    if not 0 < rate < 1:
        raise ParameterError(f"{name} is {rate}; give a share above 0 and below 1 (c_prune_released)")
