"""The outputs of a network on a set of images: its embedding and the clusters of its heads, from one pass."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.protocol import EvaluationImages
from sela_tf.models.build import cut_at
from sela_tf.models.heads import find_multi_head
from sela_tf.models.inference import BatchedInference
from sela_tf.models.layer_names import EMBEDDING


class NetworkOutputs(NamedTuple):
    """The outputs of a network in inference mode on one view of each of M images."""

    embedding: np.ndarray
    """Embedding float32 [M, D]; [M, 0] where it was not kept."""
    clusters: np.ndarray
    """Plain argmax of each head's logits, int64 [T, M]."""
    confidence: np.ndarray
    """Softmax probability of that cluster, float32 [T, M]."""
    corrected: np.ndarray
    """Argmax of lam log p + potentials, int64 [T, M]; the same as `clusters` without potentials."""

    @property
    def num_images(self) -> int:
        """The number of images M."""
        return self.clusters.shape[1]

    def take(self, rows: np.ndarray) -> NetworkOutputs:
        """Returns the outputs on the images at `rows`."""
        return NetworkOutputs(self.embedding[rows], *(each[:, rows] for each in self[1:]))

    def without_embedding(self) -> NetworkOutputs:
        """Returns the outputs of the heads alone, which take little memory."""
        return self._replace(embedding=np.empty((self.num_images, 0), np.float32))


class Passes(Protocol):
    """Passes over images by a network, or by what stands in for one."""

    def outputs(self, batches: tf.data.Dataset, num_images: int) -> NetworkOutputs:
        """Returns the outputs on the `num_images` images of `batches`, which yield (views, example indices)."""


class NetworkPasses:
    """Passes of a network over images, whose graph is made once.

    The logits [B, T, K] of a batch are reduced to clusters at once, so memory does not grow with the number of clusters K.

    Args:
        model: a network of `build_model`, with one MultiHead layer; none of its variables changes.
        strategy: strategy that the model was built under; None for one device.
        embedding: keep the embedding, too.
        potentials: potentials [T, K] of each head's transport; None for clusters without correction.
        lam: lambda of that transport.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        strategy: tf.distribute.Strategy | None = None,
        embedding: bool = True,
        potentials: np.ndarray | None = None,
        lam: float = 1.0,
    ):
        heads = find_multi_head(model)
        kept = [model.get_layer(EMBEDDING).output] if embedding else []
        head_outputs = _HeadOutputs(potentials, lam, dtype="float32", name="clusters_of_heads")(heads.output)
        output = (
            keras.layers.Concatenate(dtype="float32", name="embedding_and_clusters")([*kept, head_outputs])
            if kept
            else head_outputs
        )
        self._inference = BatchedInference(cut_at(model, output), strategy)
        self._num_heads = heads.num_heads

    def outputs(self, batches: tf.data.Dataset, num_images: int) -> NetworkOutputs:
        """Returns the outputs on the `num_images` images of `batches`, which yield (views, example indices)."""
        found = self._inference.collect(batches, num_images)
        values, numbers = np.split(found, [found.shape[1] - 3 * self._num_heads], axis=1)
        clusters, confidence, corrected = (part.T for part in np.split(numbers, 3, axis=1))
        return NetworkOutputs(values, clusters.astype(np.int64), confidence.copy(), corrected.astype(np.int64))


def network_outputs(
    model: keras.Model, images: ImageSet, *, size: tuple[int, ...], strategy: tf.distribute.Strategy | None = None, **options: Any
) -> NetworkOutputs:
    """Runs a network once over the clean views of `images`.

    Args:
        model: a network of `build_model`; none of its variables changes.
        images: M images.
        size: (height, width) that the network sees; () for vectors.
        strategy: strategy that the model was built under; None for one device.
        options: further arguments of `NetworkPasses`.
    """
    batches = inference_batches(images, size=size, batch_size=EVALUATION_BATCH)
    return NetworkPasses(model, strategy=strategy, **options).outputs(batches, len(images))


class EvaluationOutputs(NamedTuple):
    """The outputs of a network on the images that it is evaluated on."""

    training: NetworkOutputs
    """Outputs on the training images."""
    held_out: NetworkOutputs
    """Outputs on the held-out images."""

    def without_embeddings(self) -> EvaluationOutputs:
        """Returns the outputs of the heads alone, which take little memory."""
        return EvaluationOutputs(self.training.without_embedding(), self.held_out.without_embedding())


class EvaluationBatches(NamedTuple):
    """Batches of the clean views of the images that networks are evaluated on. Every network goes through the same ones."""

    training: tf.data.Dataset
    held_out: tf.data.Dataset
    num_training: int
    num_held_out: int

    def outputs(self, passes: Passes) -> EvaluationOutputs:
        """Returns the outputs of a network, which goes once over each set."""
        return EvaluationOutputs(passes.outputs(self.training, self.num_training), passes.outputs(self.held_out, self.num_held_out))


def evaluation_batches(images: EvaluationImages) -> EvaluationBatches:
    """Returns the batches of `images`."""
    sets = images.training, images.held_out
    training, held_out = (inference_batches(each, size=images.size, batch_size=EVALUATION_BATCH) for each in sets)
    return EvaluationBatches(training, held_out, *map(len, sets))


def evaluation_outputs(model: keras.Model, images: EvaluationImages, **options: Any) -> EvaluationOutputs:
    """Runs a network once over each set.

    Args:
        model: a network of `build_model`.
        images: the images to evaluate on.
        options: further arguments of `NetworkPasses`.
    """
    return evaluation_batches(images).outputs(NetworkPasses(model, **options))


class _HeadOutputs(keras.layers.Layer):
    """A layer from logits [B, T, K] to [B, 3 T]: plain cluster, its probability, and corrected cluster of each head.

    All values are float32, which holds integers up to 2**24 exactly.
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
