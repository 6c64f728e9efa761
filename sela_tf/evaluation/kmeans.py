"""A clustering by k-means on an embedding, for representations that come without clusters."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

_STARTS = 10


def kmeans_clusters(embedding: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns the clusters int [N] of `embedding` [N, D] by scikit-learn's k-means.

    The embedding is used without normalisation. The result is the best of ten starts and the same at every call.
    """
    return KMeans(num_clusters, n_init=_STARTS, random_state=0).fit_predict(np.asarray(embedding, np.float32))
