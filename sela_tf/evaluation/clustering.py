"""How well clusters agree with classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


class ClusterMetrics(NamedTuple):
    """Agreement of one clustering with the classes; 1 is the best of each but the entropy."""

    nmi: float
    """Normalised mutual information, arithmetic mean."""
    ami: float
    """Adjusted for chance ("aNMI")."""
    ari: float
    """Adjusted Rand index."""
    hungarian: float
    """Accuracy when each class is matched with the one cluster that suits best; at most C clusters count."""
    purity: float
    """Share of a cluster's images that are of its most frequent class, mean over the clusters in use."""
    entropy: float
    """Of the classes in a cluster, in nats, mean over the clusters in use: from 0, of pure ones, to the logarithm of their number."""


def cluster_metrics(classes: np.ndarray, clusters: np.ndarray) -> ClusterMetrics:
    """Compares `clusters` [N] with `classes` [N]."""
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


def entropy_histogram(classes: np.ndarray, clusters: np.ndarray) -> list[int]:
    """Clusters in use by the entropy of the classes [N] in them: counts in ENTROPY_BINS bins from 0 to the logarithm of the number of
    classes, of random clusters nearly all in the last."""
    entropies = _entropies(contingency_matrix(classes, clusters))
    highest = max(float(np.log(len(np.unique(classes)))), 1e-9)
    return np.histogram(np.minimum(entropies, highest), bins=ENTROPY_BINS, range=(0.0, highest))[0].tolist()


def _entropies(counts: np.ndarray) -> np.ndarray:
    """Of the classes in each cluster, in nats [K in use], from the contingency matrix."""
    return entr(counts / counts.sum(axis=0)).sum(axis=0)
