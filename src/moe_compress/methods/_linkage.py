"""Average linkage inside every layer, cut where the budget says: what merging methods group by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from moe_compress.methods._budget import experts_to_keep, share_out
from moe_compress.types import Budget, FloatArray, MoELayout

Clusters = tuple[tuple[int, ...], ...]


def cluster_layers(
    distances: Sequence[FloatArray], budget: Budget, layout: MoELayout, seed: int
) -> tuple[Clusters, ...]:
    """Return per layer as many clusters as the budget keeps, ordered by smallest member.

    A `global` budget undoes the highest merges of all layers first, heights taken as shares of their layer's sum.
    A router's groups are clustered one by one, and each keeps the same number.

    Args:
        distances: per layer, distances between its experts, `[E, E]`.
        budget: how many clusters stay.
        layout: the model's layout.
        seed: of the order that breaks ties.

    Raises:
        ParameterError: if the layout cannot meet the budget.
    """
    return tuple(
        tuple(
            tuple(group * tree.count + member for member in members)
            for group, tree in enumerate(layer)
            for members in tree.cut(keep // layout.num_groups)
        )
        for layer, keep in _grow(distances, budget, layout, seed)
    )


def layer_joins(
    distances: Sequence[FloatArray], budget: Budget, layout: MoELayout, seed: int
) -> tuple[FloatArray, ...]:
    """Return per layer the joins of the same trees, as `MergeTrees` has them; arguments as for `cluster_layers`.

    Raises:
        ParameterError: if the layout cannot meet the budget.
    """
    found = []
    for layer, keep in _grow(distances, budget, layout, seed):
        experts = sum(tree.count for tree in layer)
        joins: list[FloatArray] = []
        for group, tree in enumerate(layer):
            first_join = experts + sum(map(len, joins))
            joins.append(tree.joins(keep // layout.num_groups, group * tree.count, first_join))
        found.append(np.concatenate(joins))
    return tuple(found)


def _grow(
    distances: Sequence[FloatArray], budget: Budget, layout: MoELayout, seed: int
) -> list[tuple[list[_Tree], int]]:
    """Return per layer the trees of its router groups, and how many clusters it keeps."""
    trees = [
        [
            _Tree(block_EE, (seed, layer, group))
            for group, block_EE in enumerate(_blocks(matrix_EE, layout.num_groups))
        ]
        for layer, matrix_EE in zip(layout.layers, distances, strict=True)
    ]
    if budget.scope == "global":
        keep_L = share_out([_heights_in_turn(layer) for layer in trees], budget, layout, seed)
    else:
        keep_L = experts_to_keep(budget, layout)
    return list(zip(trees, keep_L, strict=True))


def _blocks(matrix_EE: FloatArray, num_groups: int) -> list[FloatArray]:
    size = len(matrix_EE) // num_groups
    return [matrix_EE[start : start + size, start : start + size] for start in range(0, len(matrix_EE), size)]


class _Tree:
    """One block's average linkage; scipy breaks ties by position, so it sees the experts in a seeded order."""

    def __init__(self, distance_EE: FloatArray, seed: Sequence[int]) -> None:
        self.count = len(distance_EE)
        self.order = np.random.default_rng(list(seed)).permutation(self.count)
        seen_EE = distance_EE[np.ix_(self.order, self.order)]
        distances = squareform((seen_EE + seen_EE.T) / 2, checks=False)
        self.merges = linkage(distances, "average") if self.count > 1 else np.empty((0, 4))

    def cut(self, num_clusters: int) -> list[tuple[int, ...]]:
        """Return exactly `num_clusters` clusters: all but the last merges are done, also among equal heights."""
        members = {index: [int(expert)] for index, expert in enumerate(self.order)}
        for index, (first, second) in enumerate(self.merges[: self.count - num_clusters, :2].astype(int)):
            members[self.count + index] = members.pop(first) + members.pop(second)
        return sorted(tuple(sorted(cluster)) for cluster in members.values())

    def joins(self, num_clusters: int, first_expert: int, first_join: int) -> FloatArray:
        """Return `[M, 4]`: the parts of each join, its height, and 1 where `cut` does it.

        Args:
            num_clusters: clusters that `cut` leaves.
            first_expert: the layer's expert that is this block's first.
            first_join: the number of this block's first join among the layer's experts and joins.
        """
        names = np.concatenate([first_expert + self.order, first_join + np.arange(len(self.merges))])
        is_done = np.arange(len(self.merges)) < self.count - num_clusters
        return np.column_stack([names[self.merges[:, :2].astype(int)], self.merges[:, 2], is_done])

    def heights(self) -> FloatArray:
        """Return what each cluster more undoes, highest first; the first cluster is not counted against others."""
        return np.concatenate([self.merges[-1:, 2] if self.count > 1 else [0.0], self.merges[::-1, 2]])


def _heights_in_turn(trees: Sequence[_Tree]) -> FloatArray:
    """Return a layer's heights as shares of their sum, every router group's first cluster first."""
    heights = np.stack([tree.heights() for tree in trees], axis=1).reshape(-1)
    return np.asarray(heights / max(heights.sum(), np.finfo(np.float64).tiny), dtype=np.float64)
