"""A network's embedding and its heads' clusters, from one pass over the images."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.models.build import cut_at
from sela_tf.models.heads import find_multi_head
from sela_tf.models.inference import BatchedInference
from sela_tf.models.layer_names import EMBEDDING


class Look(NamedTuple):
    """A network in inference mode on the clean views of M images."""

    embedding: np.ndarray
    """float32 [M, D]; [M, 0] where it was not asked for."""
    clusters: np.ndarray
    """int64 [T, M], the plain argmax of each head."""
    confidence: np.ndarray
    """float32 [T, M], each head's probability of that cluster."""
    corrected: np.ndarray
    """int64 [T, M], the argmax of lam log p + potentials; the plain one without potentials."""

    @property
    def num_images(self) -> int:
        """M."""
        return self.clusters.shape[1]

    def without_embedding(self) -> Look:
        """The clusters alone, which take little memory."""
        return self._replace(embedding=np.empty((self.num_images, 0), np.float32))


def look(
    model: keras.Model,
    images: ImageSet,
    *,
    size: tuple[int, ...],
    strategy: tf.distribute.Strategy | None = None,
    embedding: bool = True,
    potentials: np.ndarray | None = None,
    lam: float = 1.0,
) -> Look:
    """Runs the network once over `images`; the logits [B, T, K] of a batch go no further than the batch.

    Args:
        model: of `build_model`, with one MultiHead layer; no variable of it changes.
        images: M of them.
        size: (height, width) that the network sees; () of vectors.
        strategy: that the model was built under; None for one device.
        embedding: keep the embedding, too.
        potentials: [T, K], log alpha of each head's transport.
        lam: of that transport.
    """
    heads = find_multi_head(model)
    kept = [model.get_layer(EMBEDDING).output] if embedding else []
    said = _Said(potentials, lam, dtype="float32", name="clusters_of_heads")(heads.output)
    output = keras.layers.Concatenate(dtype="float32", name="embedding_and_clusters")([*kept, said]) if kept else said
    inference = BatchedInference(cut_at(model, output), strategy)
    found = inference.collect(inference_batches(images, size=size, batch_size=EVALUATION_BATCH), len(images))
    values, numbers = np.split(found, [found.shape[1] - 3 * heads.num_heads], axis=1)
    clusters, confidence, corrected = (part.T for part in np.split(numbers, 3, axis=1))
    return Look(values, clusters.astype(np.int64), confidence.copy(), corrected.astype(np.int64))


class _Said(keras.layers.Layer):
    """Logits [B, T, K] to [B, 3 T]: plain cluster, its probability, and corrected cluster of each head.

    All are float32, which holds whole numbers up to 2**24 exactly.
    """

    def __init__(self, potentials: np.ndarray | None, lam: float, **kwargs):
        super().__init__(**kwargs)
        self._added = None if potentials is None else np.asarray(potentials, np.float32) / np.float32(lam)

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        clusters = tf.argmax(logits, axis=-1)
        confidence = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
        corrected = clusters if self._added is None else tf.argmax(logits + self._added, axis=-1)
        return tf.concat([tf.cast(clusters, tf.float32), confidence, tf.cast(corrected, tf.float32)], axis=1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], 3 * input_shape[1])
