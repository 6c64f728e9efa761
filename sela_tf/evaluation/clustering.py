"""How well clusters agree with classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


class ClusterMetrics(NamedTuple):
    """Agreement of one clustering with the classes; 1 is the best of each."""

    nmi: float
    """Normalised mutual information, arithmetic mean."""
    ami: float
    """Adjusted for chance ("aNMI")."""
    ari: float
    """Adjusted Rand index."""
    hungarian: float
    """Accuracy when each class is matched with the one cluster that suits best; at most C clusters count."""


def cluster_metrics(classes: np.ndarray, clusters: np.ndarray) -> ClusterMetrics:
    """Compares `clusters` [N] with `classes` [N]."""
    counts = contingency_matrix(classes, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return ClusterMetrics(
        nmi=float(normalized_mutual_info_score(classes, clusters)),
        ami=float(adjusted_mutual_info_score(classes, clusters)),
        ari=float(adjusted_rand_score(classes, clusters)),
        hungarian=float(counts[rows, columns].sum() / len(classes)),
    )
