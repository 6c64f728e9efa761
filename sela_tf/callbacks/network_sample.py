"""What a network in training makes of a sample of images, before any transport."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.callbacks.cluster_sizes import ClusterSizes, Labels, cluster_sizes
from sela_tf.models.build import cut_at_heads
from sela_tf.models.heads import find_multi_head
from sela_tf.models.inference import BatchedInference


class Opinion(NamedTuple):
    """Of a network, in inference mode, on M images."""

    features: np.ndarray
    """float32 [M, D], what the heads see."""
    clusters: list[ClusterSizes]
    """Of each head's own argmax."""


class NetworkSample:
    """A sample of images, and the network that looks at them.

    Args:
        batches: of images, alone or as the first of a tuple such as (images, example indices); the same ones in each pass. A thousand
            will do, a few for each cluster.
        labels: whose heads and clusters the network must have.
    """

    def __init__(self, batches: tf.data.Dataset, labels: Labels):
        if not isinstance(batches, tf.data.Dataset):
            raise ValueError(f"`sample` must be a tf.data.Dataset of batches of images. Received: {type(batches).__name__}")
        if batches.cardinality() in (0, tf.data.INFINITE_CARDINALITY):
            raise ValueError(
                "`sample` must be finite and not empty. Received: a data set without "
                + ("any batch" if batches.cardinality() == 0 else "end")
            )
        self._batches, self._labels = batches, labels
        self._inference: BatchedInference | None = None

    def look_through(self, model: keras.Model) -> None:
        """From now on, `model` gives its opinion.

        Raises:
            ValueError: it has no or several MultiHead layers, or heads other than the table's.
        """
        self._heads = find_multi_head(model)
        shape = (self._heads.num_heads, self._heads.num_clusters)
        if shape != (self._labels.num_heads, self._labels.num_clusters):
            raise ValueError(
                f"The model has {shape[0]} heads of {shape[1]} clusters, the label table {self._labels.num_heads} of "
                f"{self._labels.num_clusters}"
            )
        self._inference = BatchedInference(cut_at_heads(model), model.distribute_strategy)

    def opinion(self) -> Opinion | None:
        """None before `look_through`."""
        if self._inference is None:
            return None
        features = self._inference.in_order(self._batches)
        argmax = (self._heads.head_logits(features, head).numpy().argmax(axis=1) for head in range(self._heads.num_heads))
        return Opinion(features, [cluster_sizes(clusters, self._heads.num_clusters) for clusters in argmax])
