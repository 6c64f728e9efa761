"""The clusters of one head as a page shows them: their centres, their neighbours, and the tree that joins them into groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.special import entr

from sela_tf.reporting.page.images import ShownImages

_FEWEST_GROUPS, _MOST_GROUPS = 5, 30
"""Numbers of groups between which one is proposed."""


class ClusterTable(NamedTuple):
    """The clusters of one head, by their number from 0 to K - 1."""

    sizes: np.ndarray
    """Training images [K], of all, not only those on the page."""
    held_out: np.ndarray
    """Held-out images [K] on the page."""
    confidence: np.ndarray
    """Mean margin of the members on the page, float32 [K]; 0 without members."""
    disagreement: np.ndarray
    """Mean disagreement of the heads on them, float32 [K]."""
    entropy: np.ndarray | None
    """Entropy of the members' classes in nats, float32 [K]; None without classes."""
    neighbours: np.ndarray
    """Nearest clusters by their centres, integers [K, k], the nearest first; -1 where there are fewer."""
    typical: np.ndarray
    """Rank of each image among the members of its cluster, int64 [n]: 0 for the one nearest to the centre."""
    merges: np.ndarray
    """Merge tree: pairs [J - 1, 2] of the J clusters that have members, in the order in which they are joined. Numbers from K on stand for
    what the earlier pairs, from the first on, have become."""
    proposed: int
    """Proposed number of groups."""


def describe_clusters(images: ShownImages, head: int, sizes: np.ndarray, *, num_neighbours: int = 6) -> ClusterTable:
    """Describes the clusters of one head.

    The centre of a cluster is the mean of its members' embeddings, each divided by its norm. Groups come from Ward's linkage of the
    centres. The proposed number of groups is the one before the merge whose height grows most over that of the merge before.

    Args:
        images: the images of the page.
        head: number of the head.
        sizes: training images of each cluster [K].
        num_neighbours: neighbours of each cluster.
    """
    num_clusters, clusters = len(sizes), images.clusters[head]
    members = np.bincount(clusters, minlength=num_clusters)
    unit = _unit(images.embedding)
    filled = np.flatnonzero(members)
    centres = _centres(unit, clusters, num_clusters)
    closeness = np.einsum("nd,nd->n", unit, centres[clusters])
    merges, proposed = _merge_tree(centres[filled], filled, num_clusters)

    def mean(values: np.ndarray) -> np.ndarray:
        return (np.bincount(clusters, values, num_clusters) / np.maximum(members, 1)).astype(np.float32)

    return ClusterTable(
        sizes=sizes,
        held_out=np.bincount(clusters[images.held_out], minlength=num_clusters),
        confidence=mean(images.margins[head]),
        disagreement=mean(images.disagreement),
        entropy=None if images.classes is None else _entropies(clusters, images.classes, num_clusters),
        neighbours=_nearest_clusters(centres, filled, num_neighbours),
        typical=_ranks_within(clusters, closeness),
        merges=merges,
        proposed=proposed,
    )


def merge_tree(embedding: np.ndarray, clusters: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns the merge tree of the clusters of one head, see `ClusterTable.merges`.

    Args:
        embedding: embeddings [n, D] of images.
        clusters: their clusters, integers [n].
        num_clusters: number of clusters K.
    """
    filled = np.unique(clusters)
    return _merge_tree(_centres(_unit(embedding), clusters, num_clusters)[filled], filled, num_clusters)[0]


def _unit(embedding: np.ndarray) -> np.ndarray:
    """Returns embeddings [n, D], each divided by its norm."""
    return embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)


def _centres(unit: np.ndarray, clusters: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns the mean of each cluster's members, float32 [K, D]; 0 of clusters without any."""
    order, filled = np.argsort(clusters, kind="stable"), np.unique(clusters)
    centres = np.zeros((num_clusters, unit.shape[1]), np.float32)
    sums = np.add.reduceat(unit[order], np.searchsorted(clusters[order], filled))
    centres[filled] = sums / np.bincount(clusters)[filled, np.newaxis]
    return centres


def _merge_tree(centres: np.ndarray, numbers: np.ndarray, num_clusters: int) -> tuple[np.ndarray, int]:
    """Returns the merge tree of some centres [J, D], whose clusters have the given numbers [J], and the proposed number of groups."""
    if len(centres) < 2:
        return np.zeros((0, 2), np.int64), len(centres)
    joined = linkage(centres.astype(np.float64), "ward")
    pairs = joined[:, :2].astype(np.int64)
    named = np.concatenate([numbers, num_clusters + np.arange(len(pairs))])
    # The i-th merge leaves J - 1 - i groups, so a large step up to it speaks for the J - i groups before it.
    heights = np.maximum(joined[:, 2], 1e-12)
    groups = np.arange(len(centres) - 1, 1, -1)
    growth = heights[1:] / heights[:-1]
    allowed = (groups >= _FEWEST_GROUPS) & (groups <= _MOST_GROUPS)
    proposed = int(groups[allowed][growth[allowed].argmax()]) if allowed.any() else len(centres)
    return named[pairs], proposed


def _nearest_clusters(centres: np.ndarray, filled: np.ndarray, count: int) -> np.ndarray:
    """Returns the clusters whose centres are nearest to each one's, integers [K, count]; -1 where there are fewer."""
    found = np.full((len(centres), count), -1, np.int64)
    points = centres[filled].astype(np.float64)
    squares = (points**2).sum(axis=1)
    distances = squares[:, np.newaxis] + squares - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(count, len(filled) - 1)]
    found[filled, : nearest.shape[1]] = filled[nearest]
    return found


def _ranks_within(clusters: np.ndarray, closeness: np.ndarray) -> np.ndarray:
    """Returns the rank of each image among those of its cluster, from 0 for the closest one."""
    order = np.lexsort((-closeness, clusters))
    first = np.searchsorted(clusters[order], clusters[order])
    ranks = np.empty(len(clusters), np.int64)
    ranks[order] = np.arange(len(clusters)) - first
    return ranks


def _entropies(clusters: np.ndarray, classes: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns the entropy of the classes within each cluster in nats, float32 [K]; an image of class -1 does not count."""
    known = classes >= 0
    counts = np.zeros((num_clusters, int(classes.max(initial=0)) + 1))
    np.add.at(counts, (clusters[known], classes[known]), 1)
    return entr(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).sum(axis=1).astype(np.float32)
