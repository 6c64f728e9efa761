"""Outputs of a network in training on a fixed sample of images: the inputs of its heads, and their clusters before any transport."""

from __future__ import annotations

import collections
import functools
import hashlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.callbacks.label_statistics import ClusterSizes, Labels
from sela_tf.compat.autotuning import untuned
from sela_tf.models.build import cut_at_heads
from sela_tf.models.heads import check_heads, find_multi_head
from sela_tf.models.inference import BatchedInference


class SampleOutputs(NamedTuple):
    """Outputs of a network in inference mode on a sample of M images."""

    head_inputs: np.ndarray
    """Inputs of the heads, float32 [M, D]."""
    clusters: list[ClusterSizes]
    """Sizes of the clusters that each head's argmax makes of the sample, T of them."""


class NetworkSample:
    """A sample of images, and the network that is evaluated on it.

    Args:
        batches: batches of images, alone or as the first of a tuple such as (images, example indices); the same images in each pass. A
            thousand images are enough, a few for each cluster.
        labels: the label table, whose heads and clusters the network must have.

    Raises:
        ValueError: `batches` is no data set, or is empty or infinite.
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

    def set_model(self, model: keras.Model) -> None:
        """Sets the network that is evaluated from now on.

        Raises:
            ValueError: the network has no or several MultiHead layers, or heads other than the table's.
        """
        self._heads = find_multi_head(model)
        check_heads(self._heads, self._labels.num_heads, self._labels.num_clusters)
        self._inference = BatchedInference(cut_at_heads(model), model.distribute_strategy)

    @functools.cached_property
    def same_images(self) -> float:
        """The share of the images that are each identical to another one."""
        digests: collections.Counter[bytes] = collections.Counter()
        for batch in untuned(self._batches):
            images = batch[0] if isinstance(batch, tuple | list) else batch
            parts = [np.asarray(part) for part in tf.nest.flatten(images)]
            digests.update(hashlib.sha256(b"".join(each.tobytes() for each in row)).digest() for row in zip(*parts, strict=True))
        return sum(count for count in digests.values() if count > 1) / max(digests.total(), 1)

    def outputs(self) -> SampleOutputs | None:
        """Runs the network over the sample; None before `set_model`."""
        if self._inference is None:
            return None
        head_inputs = self._inference.in_order(self._batches)
        argmax = (self._heads.head_logits(head_inputs, head).numpy().argmax(axis=1) for head in range(self._heads.num_heads))
        return SampleOutputs(head_inputs, [ClusterSizes.of(clusters, self._heads.num_clusters) for clusters in argmax])
