"""k-means on an embedding: a clustering for representations that bring none."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

_STARTS = 10


def kmeans_clusters(embedding: np.ndarray, num_clusters: int) -> np.ndarray:
    """Clusters int [N] of `embedding` [N, D] as they are, by scikit-learn's k-means, the best of ten starts; the same every time."""
    return KMeans(num_clusters, n_init=_STARTS, random_state=0).fit_predict(np.asarray(embedding, np.float32))
