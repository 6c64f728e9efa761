"""Cross-entropy of all heads against the labels of the table."""

from __future__ import annotations

import keras
import tensorflow as tf

from sela_tf.self_labelling.label_table import LabelTable


class SelfLabelLoss(keras.losses.Loss):
    """mean over heads of -log softmax(logits)[label], with labels looked up by example index (arXiv 1911.05371, eq. 6).

    Compile a model of logits [B, T, K] with it and feed it a data set of (image, example index). An index outside the table makes
    the loss NaN, in eager mode, graphs and XLA alike; `SelfLabelling` then stops training and names the index. A
    model saved with this loss is loaded with `compile=False`: the table is no part of it.
    """

    def __init__(self, labels: LabelTable, name: str = "self_label_loss"):
        # Keras hands the index over as a float of the loss's dtype: float64 is exact up to 2**53
        super().__init__(name=name, dtype="float64")
        self.labels = labels

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        index = tf.cast(tf.reshape(y_true, [-1]), tf.int64)
        logits = tf.cast(y_pred, tf.float32)
        if logits.shape[1:] != (self.labels.num_heads, self.labels.num_clusters):
            expected = f"[B, {self.labels.num_heads}, {self.labels.num_clusters}]"
            raise ValueError(f"The model must end in logits {expected}, as sela_tf.MultiHead gives them. Received: {logits.shape}")
        labels = self.labels.lookup(index)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=logits)
        return tf.where(labels[:, 0] < 0, float("nan"), tf.reduce_mean(loss, axis=1))
