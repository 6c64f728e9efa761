"""Measures of the agreement between clusters and classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


class ClusterMetrics(NamedTuple):
    """The agreement of one clustering with the classes. The best value of `entropy` is 0, that of every other metric is 1."""

    nmi: float
    """Normalised mutual information, by the arithmetic mean of both entropies."""
    ami: float
    """Adjusted mutual information: NMI corrected for chance ("aNMI" in the paper)."""
    ari: float
    """Adjusted Rand index."""
    hungarian: float
    """Accuracy under the best one-to-one matching of classes and clusters. At most as many clusters count as there are classes."""
    purity: float
    """Share of a cluster's images that belong to its most frequent class, mean over the non-empty clusters."""
    entropy: float
    """Entropy of the classes in a cluster, in nats, mean over the non-empty clusters; at most the logarithm of the number of classes."""


def cluster_metrics(classes: np.ndarray, clusters: np.ndarray) -> ClusterMetrics:
    """Returns the agreement of `clusters` with `classes`, both integers [N]."""
    counts = contingency_matrix(classes, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return ClusterMetrics(
        nmi=float(normalized_mutual_info_score(classes, clusters)),
        ami=float(adjusted_mutual_info_score(classes, clusters)),
        ari=float(adjusted_rand_score(classes, clusters)),
        hungarian=float(counts[rows, columns].sum() / len(classes)),
        purity=float((counts.max(axis=0) / counts.sum(axis=0)).mean()),
        entropy=float(_entropies(counts).mean()),
    )


ENTROPY_BINS = 24
"""The number of bins of `entropy_histogram`."""


def entropy_histogram(classes: np.ndarray, clusters: np.ndarray) -> list[int]:
    """Returns how many non-empty clusters have which entropy of their classes.

    Args:
        classes: integers [N].
        clusters: integers [N].

    Returns:
        Counts in ENTROPY_BINS equal bins from 0 to the logarithm of the number of classes. Clusters drawn at random lie nearly all in the
        last bin.
    """
    entropies = _entropies(contingency_matrix(classes, clusters))
    highest = max(float(np.log(len(np.unique(classes)))), 1e-9)
    return np.histogram(np.minimum(entropies, highest), bins=ENTROPY_BINS, range=(0.0, highest))[0].tolist()


def _entropies(counts: np.ndarray) -> np.ndarray:
    """Returns the entropy of the classes in each cluster, in nats, [K], from the contingency matrix [C, K] of non-empty clusters."""
    return entr(counts / counts.sum(axis=0)).sum(axis=0)
