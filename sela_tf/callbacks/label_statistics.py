"""Statistics of the labels of T heads: the sizes of their clusters, and the ranges of the transports' potentials."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import numpy as np
from scipy.special import entr


class Labels(Protocol):
    """The part of a label table that the monitors read; `sela_tf.LabelTable` has it. T heads, K clusters, N images."""

    num_heads: int
    """T."""
    num_clusters: int
    """K."""
    num_examples: int
    """N."""
    potentials: np.ndarray
    """Potentials [T, K] of each head's last transport; 0 before its first."""
    lam: np.ndarray
    """Value of lam [T] in each head's last transport; NaN before its first."""
    num_changes: np.ndarray
    """Number of relabellings that changed each label, integers [T, N], a head's first relabelling not counted."""
    num_relabellings: np.ndarray
    """Number of relabellings of each head, integers [T]."""

    @property
    def labels(self) -> np.ndarray:
        """The labels, integers [T, N] from 0 to K - 1."""


class ClusterSizes(NamedTuple):
    """The sizes of the K clusters of one head, and their entropy H = -sum (sizes / N) ln(sizes / N)."""

    sizes: np.ndarray
    """Number of images of each cluster, integers [K]."""

    @classmethod
    def of(cls, clusters: np.ndarray, num_clusters: int) -> Self:
        """Counts the images of each cluster.

        Args:
            clusters: the cluster of each image, integers [N] from 0 to K - 1.
            num_clusters: K.
        """
        return cls(np.bincount(clusters, minlength=num_clusters))

    @property
    def in_use(self) -> int:
        """Number of clusters that are not empty."""
        return int((self.sizes > 0).sum())

    @property
    def effective(self) -> float:
        """Effective number of clusters exp(H), the perplexity: K for equal clusters, 1 where one cluster has all images."""
        return float(np.exp(entr(self.sizes / self.sizes.sum()).sum()))

    @property
    def information_share(self) -> float:
        """Normalised entropy H / ln K: 1 for equal clusters, 0 where one cluster has all images."""
        return float(entr(self.sizes / self.sizes.sum()).sum() / np.log(len(self.sizes)))

    @property
    def smallest(self) -> int:
        """Number of images of the smallest cluster."""
        return int(self.sizes.min())

    @property
    def largest(self) -> int:
        """Number of images of the largest cluster."""
        return int(self.sizes.max())


def potential_ranges(labels: Labels) -> np.ndarray:
    """Returns the range of each head's potentials / lam, float64 [T], in nats of log p; 0 before a head's first transport.

    It is how far the transport has to move the log-probabilities to balance the clusters.
    """
    ranges = np.ptp(np.asarray(labels.potentials, np.float64), axis=1)
    # Before a head's first transport its lam is NaN.
    return np.where(ranges > 0, ranges / labels.lam, 0.0)
