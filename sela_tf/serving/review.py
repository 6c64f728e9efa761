"""Which images a person who cleans a data set should look at first."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import sparse


class Scrutiny:
    """Judges images by the opinions of a finished run's heads.

    Args:
        labels: [T, N], of the images that the run was trained on.
        num_changes: [T, N], relabellings that changed the label.
        num_relabellings: [T], of the run.
        num_clusters: K.
    """

    def __init__(self, labels: np.ndarray, num_changes: np.ndarray, num_relabellings: np.ndarray, *, num_clusters: int):
        self._most_changes = max(1, int((num_relabellings - 1).sum()))  # the first labels, at random, do not count
        self._mean_changes = float(num_changes.sum(axis=0).mean())
        sizes = [np.bincount(head, minlength=num_clusters) for head in labels]
        ones = np.ones(labels.shape[1], np.int32)
        self._pairs = []
        for a, b in itertools.combinations(range(len(labels)), 2):
            both = sparse.coo_array((ones, (labels[a], labels[b])), shape=(num_clusters, num_clusters)).tocsr()
            self._pairs.append((a, b, both, sizes[a], sizes[b]))

    def disagreement(self, clusters: np.ndarray) -> np.ndarray:
        """How far the heads disagree on images of the clusters [B, T]: float32 [B] from 0 to 1, 0 of a single head.

        One minus the Jaccard overlap of the members of an image's clusters, mean over pairs of heads.
        """
        total = np.zeros(len(clusters))
        for a, b, both, size_a, size_b in self._pairs:
            first, second = clusters[:, a], clusters[:, b]
            shared = np.asarray(both[first, second]).reshape(-1)
            total += 1.0 - shared / np.maximum(size_a[first] + size_b[second] - shared, 1)
        return (total / max(1, len(self._pairs))).astype(np.float32)

    def look_here_first(self, margins: np.ndarray, disagreement: np.ndarray, num_changes: np.ndarray) -> np.ndarray:
        """float32 [B] from 0 to 1: the mean of small margins, labels that kept changing and, of several heads, that these disagree.

        Args:
            margins: [B, T].
            disagreement: [B], left out where there is one head.
            num_changes: [B], over all heads; NaN where it is not known, which counts as the mean over the training images, so that
                images of the training and others can be compared.
        """
        changes = np.where(np.isnan(num_changes), self._mean_changes, num_changes) / self._most_changes
        parts = [1.0 - np.clip(margins.mean(axis=1), 0.0, 1.0), changes]
        if self._pairs:
            parts.append(disagreement)
        return np.mean(parts, axis=0).astype(np.float32)
