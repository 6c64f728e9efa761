"""Keras callbacks that watch a training."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.models.features import FeatureExtractor


class KNNMonitor(keras.callbacks.Callback):
    """Weighted kNN accuracy of the features at the end of every epoch, as "knn" in the logs of the callbacks that follow.

    Args:
        layer: name of the layer whose output [B, D] is looked at.
        train_batches: of (images, indices 0 … N - 1): where neighbours are looked for.
        train_classes: [N].
        eval_batches: of (images, indices 0 … M - 1).
        eval_classes: [M].
        k: neighbours.
    """

    def __init__(
        self,
        layer: str,
        train_batches: tf.data.Dataset,
        train_classes: np.ndarray,
        eval_batches: tf.data.Dataset,
        eval_classes: np.ndarray,
        *,
        k: int = 10,
    ):
        super().__init__()
        self.layer = layer
        self.train_batches, self.train_classes = train_batches, train_classes
        self.eval_batches, self.eval_classes = eval_batches, eval_classes
        self.k = k
        self._extractor: FeatureExtractor | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        cut = keras.Model(self.model.inputs, self.model.get_layer(self.layer).output)
        self._extractor = FeatureExtractor(cut, self.model.distribute_strategy)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._extractor is None or logs is None:
            return
        bank = self._extractor.collect(self.train_batches, len(self.train_classes))
        queries = self._extractor.collect(self.eval_batches, len(self.eval_classes))
        logs["knn"] = knn_accuracy(bank, self.train_classes, queries, self.eval_classes, k=self.k)
