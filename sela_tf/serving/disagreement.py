"""The disagreement of heads on an image."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import sparse


class HeadDisagreement:
    """The disagreement of heads, by the members that their clusters have in a finished run.

    Args:
        labels: integers [T, N], labels of the images that the run was trained on.
        num_clusters: number of clusters K.
    """

    def __init__(self, labels: np.ndarray, *, num_clusters: int):
        sizes = [np.bincount(head, minlength=num_clusters) for head in labels]
        ones = np.ones(labels.shape[1], np.int32)
        self._pairs = []
        for a, b in itertools.combinations(range(len(labels)), 2):
            both = sparse.coo_array((ones, (labels[a], labels[b])), shape=(num_clusters, num_clusters)).tocsr()
            self._pairs.append((a, b, both, sizes[a], sizes[b]))

    def of(self, clusters: np.ndarray) -> np.ndarray:
        """Returns how far the heads disagree on each image, float32 [B] in [0, 1]; 0 for a single head.

        The disagreement of two heads is one minus the Jaccard index of the members of the image's two clusters. The result is the mean
        over pairs of heads.

        Args:
            clusters: integers [B, T], each head's cluster of the images.
        """
        total = np.zeros(len(clusters))
        for a, b, both, size_a, size_b in self._pairs:
            first, second = clusters[:, a], clusters[:, b]
            shared = np.asarray(both[first, second]).reshape(-1)
            total += 1.0 - shared / np.maximum(size_a[first] + size_b[second] - shared, 1)
        return (total / max(1, len(self._pairs))).astype(np.float32)
