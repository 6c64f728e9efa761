"""A baseline that learns nothing: the pixels of a small view as the embedding, and k-means on them as the clusters."""

from __future__ import annotations

import warnings

import numpy as np
import tensorflow as tf
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from sela_tf.compat.autotuning import untuned
from sela_tf.evaluation.outputs import NetworkOutputs

SIDE = 16
"""The side in pixels to which larger views are reduced."""
_STARTS, _KMEANS_BATCH, _ROWS = 3, 1024, 1000


class RawPixels:
    """Raw pixels in place of a network: the embedding is the view, the one head is k-means.

    Vectors are their own embedding.

    Args:
        batches: batches of (views, example indices) of training images.
        num_images: number of these images.
        rows: the images among them that k-means is fitted to; None for all.
        num_clusters: number of clusters K; fewer where there are fewer images.
        seed: seed of k-means.
    """

    def __init__(
        self, batches: tf.data.Dataset, num_images: int, *, rows: np.ndarray | None = None, num_clusters: int, seed: int = 0
    ):
        pixels = _collect(batches, num_images)
        fitted = pixels if rows is None else pixels[rows]
        num_clusters = min(num_clusters, len(fitted))
        kmeans = MiniBatchKMeans(num_clusters, n_init=_STARTS, batch_size=max(_KMEANS_BATCH, num_clusters), random_state=seed)
        with warnings.catch_warnings():
            # Fewer different images than clusters give several centres in one place, which does no harm here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._centres = kmeans.fit(fitted).cluster_centers_.astype(np.float32)
        self.training = self._with_clusters(pixels)
        """The outputs on the training images."""

    @property
    def num_clusters(self) -> int:
        """The number of clusters K."""
        return len(self._centres)

    def outputs(self, batches: tf.data.Dataset, num_images: int) -> NetworkOutputs:
        """Returns the outputs on the `num_images` images of `batches`, which yield (views, example indices)."""
        return self._with_clusters(_collect(batches, num_images))

    def _with_clusters(self, pixels: np.ndarray) -> NetworkOutputs:
        """Returns pixels [M, D] and their nearest centres as the outputs of a network, without a confidence."""
        half_squares = np.square(self._centres).sum(axis=1) / 2
        blocks = (pixels[start : start + _ROWS] for start in range(0, len(pixels), _ROWS))
        clusters = np.concatenate([(block @ self._centres.T - half_squares).argmax(axis=1) for block in blocks])[np.newaxis]
        return NetworkOutputs(pixels, clusters, np.ones(clusters.shape, np.float32), clusters)


def _collect(batches: tf.data.Dataset, num_images: int) -> np.ndarray:
    """Returns the pixels of all views, float32 [N, D]: in [0, 1] and at most SIDE x SIDE of images, as they are of vectors."""
    collected = np.empty((num_images, 0), np.float32)
    for views, indices in untuned(batches):
        if len(views.shape) == 4:
            small = [min(side, SIDE) for side in views.shape[1:3]]
            if small != list(views.shape[1:3]):
                views = tf.image.resize(views, small, antialias=True)
            views = tf.reshape(views, [len(views), -1]) / 255.0
        if not collected.size:
            collected = np.empty((num_images, views.shape[1]), np.float32)
        collected[indices.numpy()] = views.numpy()
    return collected
