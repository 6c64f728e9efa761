"""A baseline that learns nothing: the pixels of a small clean view as the embedding, and k-means on them as the clusters."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import tensorflow as tf
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.models.build import cut_at
from sela_tf.models.heads import MultiHead
from sela_tf.models.inference import BatchedInference
from sela_tf.models.layer_names import EMBEDDING, HEADS

SIDE = 16
"""The side in pixels to which larger views are reduced."""
_STARTS, _KMEANS_BATCH = 3, 1024


def raw_pixels_network(images: ImageSet, *, size: tuple[int, ...], num_clusters: int, seed: int = 0) -> keras.Model:
    """Builds a network that sees images as they are, so that raw pixels are measured as any other network is.

    Its embedding is the view, reduced to at most SIDE x SIDE pixels; vectors are their own embedding. Its one head has the clusters of
    k-means: the nearest centre is the argmax of 2 x·c - |c|², which is linear in x.

    Args:
        images: images that k-means is fitted to.
        size: (height, width) of the views; () for vectors.
        num_clusters: number of clusters K; fewer where there are fewer images.
        seed: seed of k-means.

    Returns:
        A functional model from views to logits [B, 1, K], with the layers "embedding" and "heads" of a network of `build_model`.
    """
    num_clusters = max(2, min(num_clusters, len(images)))
    inputs = keras.Input((*size, images.channels), name="image")
    embedding = _RawPixels(name=EMBEDDING)(inputs)
    heads = MultiHead(1, num_clusters, dtype="float32", name=HEADS)
    model = keras.Model(inputs, heads(embedding), name="raw_pixels")
    pixels = BatchedInference(cut_at(model, EMBEDDING)).collect(
        inference_batches(images, size=size, batch_size=EVALUATION_BATCH), len(images)
    )
    centres = _centres(pixels, num_clusters, seed=seed)
    heads.kernel.assign(2 * centres.T[:, np.newaxis])
    heads.bias.assign(-np.square(centres).sum(axis=1)[np.newaxis])
    return model


def _centres(pixels: np.ndarray, num_clusters: int, *, seed: int) -> np.ndarray:
    """Returns the centres float32 [K, D] of k-means on `pixels` [N, D]."""
    kmeans = MiniBatchKMeans(num_clusters, n_init=_STARTS, batch_size=max(_KMEANS_BATCH, num_clusters), random_state=seed)
    with warnings.catch_warnings():
        # Fewer different images than clusters give several centres in one place, which does no harm here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit(pixels).cluster_centers_.astype(np.float32)


class _RawPixels(keras.layers.Layer):
    """A layer from views [B, H, W, C] in [0, 255] to their pixels in [0, 1], reduced to at most SIDE x SIDE, [B, D]; vectors stay."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if len(inputs.shape) == 2:
            return inputs
        small = [min(side, SIDE) for side in inputs.shape[1:3]]
        if small != list(inputs.shape[1:3]):
            inputs = tf.image.resize(inputs, small, antialias=True)
        return tf.reshape(inputs, [-1, small[0] * small[1] * inputs.shape[3]]) / 255.0

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        if len(input_shape) == 2:
            return tuple(input_shape)
        return (input_shape[0], min(input_shape[1], SIDE) * min(input_shape[2], SIDE) * input_shape[3])
