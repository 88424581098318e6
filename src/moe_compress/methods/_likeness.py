"""How alike experts are, inside layers and across them, averaged down to what a picture can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_compress.types import ExpertStatistics, FloatArray, Likeness, MergeTrees

_INSIDE, _ACROSS = 60, 240
"""Cells a side, of a layer's picture and of the one of all layers."""

COSINE = "1 less the cosine of mean outputs"


@dataclass(frozen=True)
class _Blocks:
    """Sums of unit vectors over blocks of neighbours: products of sums are sums of cosines.

    Attributes:
        sums_ND: the sums.
        size_N: experts of each block.
        own_N: each block's sum of cosines of experts with themselves.
    """

    sums_ND: FloatArray
    size_N: NDArray[np.int64]
    own_N: FloatArray

    def means(self) -> FloatArray:
        """Return the mean cosine of two different experts of two blocks; of a lone one with itself, that."""
        totals_NN = self.sums_ND @ self.sums_ND.T
        pairs_NN = np.outer(self.size_N, self.size_N).astype(np.float64)
        several = np.flatnonzero(self.size_N > 1)
        totals_NN[several, several] -= self.own_N[several]
        pairs_NN[several, several] -= self.size_N[several]
        return np.asarray(totals_NN / pairs_NN, dtype=np.float64)


@dataclass(frozen=True)
class _Layer:
    """One layer's experts: the order of their linkage, its joins, their picture and their part in the other."""

    order_E: NDArray[np.int64]
    joins: FloatArray
    inside: FloatArray
    across: _Blocks
    mean: float
    nearest: float


def measure_likeness(statistics: ExpertStatistics) -> tuple[Likeness, MergeTrees] | None:
    """Return the cosines between experts' mean outputs (C-Prune's figure 1), and the average linkage by them.

    An expert whose outputs are all 0 is unlike every other.

    Returns:
        None where `embedding` was not collected.
    """
    if "embedding" not in statistics.sums:
        return None
    counts = statistics.layout.num_experts
    blocks = -(-max(counts) // _INSIDE), -(-max(counts) // max(1, _ACROSS // len(counts)))
    layers = [
        _read_layer(outputs_ED[:experts], *blocks)
        for outputs_ED, experts in zip(statistics["embedding"], counts, strict=True)
    ]
    likeness = Likeness(
        order=tuple(tuple(layer.order_E.tolist()) for layer in layers),
        inside=tuple(layer.inside for layer in layers),
        inside_block=blocks[0],
        across=_chain([layer.across for layer in layers]).means(),
        across_block=blocks[1],
        mean_inside=tuple(layer.mean for layer in layers),
        nearest=tuple(layer.nearest for layer in layers),
        mean_across=_mean_across([layer.across for layer in layers]),
    )
    return likeness, MergeTrees(COSINE, False, counts, tuple(layer.joins for layer in layers))


def _read_layer(outputs_ED: FloatArray, inside: int, across: int) -> _Layer:
    norms_E = np.linalg.norm(outputs_ED, axis=1, keepdims=True)
    unit_ED = outputs_ED / np.where(norms_E > 0, norms_E, 1.0)
    cosine_EE = unit_ED @ unit_ED.T
    joins, order_E = _link(cosine_EE)
    np.fill_diagonal(cosine_EE, -np.inf)
    nearest = float(cosine_EE.max(axis=1).mean()) if len(cosine_EE) > 1 else float("nan")
    np.fill_diagonal(cosine_EE, 0.0)
    pairs = len(cosine_EE) * (len(cosine_EE) - 1)
    mean = float(cosine_EE.sum() / pairs) if pairs else float("nan")
    ordered_ED = unit_ED[order_E]
    return _Layer(
        order_E, joins, _in_blocks(ordered_ED, inside).means(), _in_blocks(ordered_ED, across), mean, nearest
    )


def _link(cosine_EE: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return the joins of an average linkage of `1 - cosine`, none done, and its leaves, those alike together."""
    if len(cosine_EE) == 1:
        return np.empty((0, 4)), np.zeros(1, dtype=np.int64)
    # Half a second, which every command would wait for.
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    distances = squareform(np.maximum(1 - (cosine_EE + cosine_EE.T) / 2, 0.0), checks=False)
    tree = linkage(distances, "average")
    leaves = leaves_list(optimal_leaf_ordering(tree, distances)).astype(np.int64)
    return np.column_stack([tree[:, :3], np.zeros(len(tree))]), leaves


def _in_blocks(unit_ED: FloatArray, block: int) -> _Blocks:
    starts = np.arange(0, len(unit_ED), block)
    return _Blocks(
        np.add.reduceat(unit_ED, starts),
        np.diff([*starts, len(unit_ED)]),
        np.add.reduceat((unit_ED**2).sum(axis=1), starts),
    )


def _chain(blocks: Sequence[_Blocks]) -> _Blocks:
    return _Blocks(
        np.concatenate([each.sums_ND for each in blocks]),
        np.concatenate([each.size_N for each in blocks]),
        np.concatenate([each.own_N for each in blocks]),
    )


def _mean_across(blocks: Sequence[_Blocks]) -> float:
    """Return the mean cosine of two experts of different layers; all pairs are the layers' sums' products."""
    sums_LD = np.stack([each.sums_ND.sum(axis=0) for each in blocks])
    size_L = np.array([each.size_N.sum() for each in blocks])
    apart = float((sums_LD.sum(axis=0) ** 2).sum() - (sums_LD**2).sum())
    pairs = int(size_L.sum() ** 2 - (size_L**2).sum())
    return apart / pairs if pairs else float("nan")
