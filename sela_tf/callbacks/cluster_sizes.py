"""How large the clusters of a labelling are, and what of a table of labels is looked at."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import entr


class Labels(Protocol):
    """What the monitors read of the labels of T heads; `sela_tf.LabelTable` has it."""

    num_heads: int
    num_clusters: int
    num_examples: int
    potentials: np.ndarray
    """[T, K], of the last transport of each head; 0 before it."""
    lam: np.ndarray
    """[T], of that transport."""
    num_changes: np.ndarray
    """[T, N], the relabellings that changed the label, not counting a head's first."""
    num_relabellings: np.ndarray
    """[T]."""

    @property
    def labels(self) -> np.ndarray:
        """Integers [T, N]."""


class ClusterSizes(NamedTuple):
    """Images of each cluster of one head."""

    sizes: np.ndarray
    """[K]."""

    @property
    def in_use(self) -> int:
        """Clusters that are not empty."""
        return int((self.sizes > 0).sum())

    @property
    def effective(self) -> float:
        """exp(H), H the entropy of the sizes: K equal clusters count K, one that has nearly all images counts 1."""
        return float(np.exp(entr(self.sizes / self.sizes.sum()).sum()))

    @property
    def information_share(self) -> float:
        """H / ln K: 1 when equipartitioned, falling to 0 in a collapse."""
        return float(entr(self.sizes / self.sizes.sum()).sum() / np.log(len(self.sizes)))

    @property
    def smallest(self) -> int:
        """Images of the smallest cluster."""
        return int(self.sizes.min())

    @property
    def largest(self) -> int:
        """Images of the largest cluster."""
        return int(self.sizes.max())


def cluster_sizes(clusters: np.ndarray, num_clusters: int) -> ClusterSizes:
    """Of `clusters`, integers [N] from 0 to K - 1."""
    return ClusterSizes(np.bincount(clusters, minlength=num_clusters))


def potential_ranges(labels: Labels) -> np.ndarray:
    """[T], how far the potentials of each head lie apart, in nats of log p: what the transport has to add to balance the clusters."""
    ranges = np.ptp(np.asarray(labels.potentials, np.float64), axis=1)
    # before a head's first transport there is no lam either
    return np.where(ranges > 0, ranges / labels.lam, 0.0)
