"""One pass of a model over a data set of (image, example index), collected in index order."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def read(variable: keras.Variable) -> np.ndarray:
    """The value of a variable; the first replica's where it is mirrored, which NumPy cannot read by itself."""
    return tf.convert_to_tensor(variable).numpy()


def _pair(batch: Any, num_examples: int) -> tuple[tf.Tensor, np.ndarray]:
    """(images, indices [b]) of a batch, refused where it is anything else."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"The inference dataset must yield pairs (images, example indices). Received: {type(batch).__name__}")
    images, indices = batch
    rows = np.asarray(indices).reshape(-1)
    if rows.dtype.kind not in "iu" or len(rows) != len(images):
        raise ValueError(
            f"The inference dataset must yield batches of images with as many integer indices. Received: {len(images)} images, "
            f"indices {rows.dtype} {np.shape(indices)}"
        )
    outside = rows[(rows < 0) | (rows >= num_examples)]
    if len(outside):
        raise ValueError(f"The inference dataset must yield indices from 0 to {num_examples - 1}. Received: {outside[0]}")
    return images, rows


class FeatureExtractor:
    """Runs a functional model, on every replica of its strategy, without changing any of its variables.

    Args:
        model: with one output [B, D].
        strategy: that the model was built under; None for one device.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy | None = None):
        self.model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        self._forward = tf.function(self._run, reduce_retracing=True)

    def collect(self, batches: tf.data.Dataset, num_examples: int, *, batch_statistics: bool = False) -> np.ndarray:
        """float32 [N, D], row i for example i.

        Args:
            batches: of (images, indices); every index from 0 to N - 1 once, in any order and in batches of any size.
            num_examples: N.
            batch_statistics: normalise with the statistics of each batch, as in training. What that changes (moving statistics,
                dropout's seeds) is put back.

        Raises:
            ValueError: an index is missing, repeated or outside 0 … N - 1.
        """
        trainable = {id(variable) for variable in self.model.trainable_variables}
        state = [variable for variable in self.model.variables if id(variable) not in trainable] if batch_statistics else []
        before = [read(variable) for variable in state]
        seen = np.zeros(num_examples, np.int64)
        features: np.ndarray | None = None
        try:
            for batch in batches:
                images, rows = _pair(batch, num_examples)
                outputs = self._forward(self._split(images), batch_statistics)
                outputs = np.concatenate(
                    [np.asarray(part, np.float32) for part in self._strategy.experimental_local_results(outputs)]
                )
                if features is None:
                    features = np.empty((num_examples, outputs.shape[-1]), np.float32)
                features[rows] = outputs
                np.add.at(seen, rows, 1)
                if seen[rows].max(initial=0) > 1:
                    break  # of a data set that repeats there would be no end
        finally:
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)
        if features is None or (seen != 1).any():
            missing, repeated = int((seen == 0).sum()), int((seen > 1).sum())
            raise ValueError(
                f"The inference dataset must yield each of {num_examples} example indices once. Received: {missing} missing "
                f"(first {np.flatnonzero(seen == 0)[:1]}), {repeated} repeated (first {np.flatnonzero(seen > 1)[:1]})"
            )
        return features

    def settle(self, batches: tf.data.Dataset, *, num_batches: int = 50) -> None:
        """Moves the moving statistics of batch normalisation to those of these batches' images; no weight changes.

        Of a network before its first step they are still empty, and its outputs in inference mode mean nothing. The statistics move
        with a momentum of .9 at most, of which 50 batches leave .5 %: at the .99 that Keras' own networks have, they would leave 60 %.
        """
        norms = [layer for layer in self.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        before = [layer.momentum for layer in norms]
        for layer in norms:
            layer.momentum = min(layer.momentum, 0.9)
        # traced with these momenta, and not kept
        forward = tf.function(self._run, reduce_retracing=True)
        try:
            for images, _ in batches.repeat().take(num_batches):
                forward(self._split(images), True)
        finally:
            for layer, momentum in zip(norms, before, strict=True):
                layer.momentum = momentum

    def _split(self, images: tf.Tensor) -> tf.Tensor:
        """One part a replica, in order."""
        replicas = self._strategy.num_replicas_in_sync
        if replicas == 1:
            return images
        bounds = [i * len(images) // replicas for i in range(replicas + 1)]
        parts = [images[low:high] for low, high in itertools.pairwise(bounds)]
        return self._strategy.experimental_distribute_values_from_function(lambda context: parts[context.replica_id_in_sync_group])

    def _run(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        return self._strategy.run(lambda x: self.model(x, training=training), args=(images,))
