"""How C-Prune's published code clusters one batch: Ward linkage over the rows of the distance matrix."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, ward
from scipy.spatial.distance import squareform

from moe_compress.methods._agglomerate import distances_of
from moe_compress.methods._released_votes import Clustered
from moe_compress.types import FloatArray


def cluster_batch(products_XX: FloatArray, num_clusters: int) -> Clustered:
    """Return each expert's cluster and its distance to the mean of the cluster's members.

    As in the published code, Ward's method is given the rows of the distance matrix as if they were the experts'
    coordinates: experts are alike when they are about as far from all others. As there, ties are broken by
    position. Their distances are float16; these are float64.

    Args:
        products_XX: inner products of the experts' outputs on the batch's samples, added over the samples.
        num_clusters: clusters, at most.
    """
    squared_XX = distances_of(products_XX)
    if len(squared_XX) == 1:
        return [(1, 0.0)]
    rows_XX = np.sqrt(squared_XX)
    # pdist would loop over pairs: minutes for all experts of a large model, whose products take seconds.
    between = squareform(np.sqrt(distances_of(rows_XX @ rows_XX.T)), checks=False)
    label_X = fcluster(ward(between), num_clusters, "maxclust")
    to_center_X = np.zeros(len(label_X))
    for label in np.unique(label_X):
        members = np.flatnonzero(label_X == label)
        within_MM = squared_XX[np.ix_(members, members)]
        # ||x - mu||^2 = mean_j ||x - x_j||^2 - mean_jk ||x_j - x_k||^2 / 2.
        to_center_X[members] = np.sqrt(np.maximum(within_MM.mean(axis=1) - within_MM.mean() / 2, 0.0))
    return list(zip(label_X.tolist(), to_center_X.tolist(), strict=True))
