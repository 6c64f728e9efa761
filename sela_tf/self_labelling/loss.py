"""The cross-entropy loss of all heads, with labels looked up in a label table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping

import keras
import numpy as np
import tensorflow as tf

from sela_tf.compat.releases import EXACT_TARGETS
from sela_tf.self_labelling.label_table import LabelTable


@keras.saving.register_keras_serializable("sela_tf")
class SelfLabelLoss(keras.losses.Loss):
    """A Keras loss: the mean over heads of -log softmax(logits)[label], with labels looked up by example index (arXiv 1911.05371, eq. 6).

    Compile a model whose output is logits [B, T, K] with this loss, and train it on a data set of (image, example index). An index outside
    the table makes the loss NaN in eager mode, graphs and XLA; `SelfLabelling` then stops the training and names the index.

    The table is no part of the loss's configuration: the loss of a model that was copied, pickled or loaded is unbound until `loss.labels`
    is set, which `SelfLabelling` does when training starts. Weights files of a compiled model hold the table's state next to the
    optimizer's, and restore it where the loss is bound to a table of the same shape.

    Args:
        labels: the table; None for a loss that is bound later.
        name: the name of the loss.
    """

    def __init__(self, labels: LabelTable | None = None, name: str = "self_label_loss"):
        super().__init__(name=name, **EXACT_TARGETS)
        self.labels = labels

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        table = self.labels
        if table is None:
            raise ValueError(f"{self.name} has no labels: bind a LabelTable: loss.labels = table")
        index = tf.cast(tf.reshape(y_true, [-1]), tf.int64)
        logits = tf.cast(y_pred, tf.float32)
        if logits.shape[1:] != (table.num_heads, table.num_clusters):
            expected = f"[B, {table.num_heads}, {table.num_clusters}]"
            raise ValueError(f"The model must end in logits {expected}, as sela_tf.MultiHead gives them. Received: {logits.shape}")
        labels = table.lookup(index)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=logits)
        return tf.where(labels[:, 0] < 0, float("nan"), tf.reduce_mean(loss, axis=1))

    def get_config(self) -> dict:
        return {"name": self.name}

    def save_own_variables(self, store: MutableMapping[str, np.ndarray]) -> None:
        """Writes the state of the table to a weights file of the model, from which Keras' `BackupAndRestore` restores it."""
        if self.labels is not None:
            for name, value in self.labels.compact_state().items():
                store[name] = value

    def load_own_variables(self, store: Mapping[str, np.ndarray]) -> None:
        """Restores the state of the table from a weights file, if the file has one; warns, and keeps the table, if it is another table's."""
        saved = {name: np.asarray(store[name]) for name in store.keys()}  # noqa: SIM118 - Keras' store is no iterable
        if self.labels is None or not saved:
            return
        try:
            self.labels.restore(saved)
        except ValueError as error:
            warnings.warn(
                f"The labels of the weights file are another table's, and those of before are kept. {error}", stacklevel=2
            )


def tables_of(model: keras.Model) -> list[LabelTable]:
    """Returns the tables that the losses of a compiled model read."""
    return [one.labels for one in _losses(model) if one.labels is not None]


def bind_losses(model: keras.Model, labels: LabelTable) -> None:
    """Binds each `SelfLabelLoss` of a compiled model that has no table to `labels`.

    Raises:
        ValueError: a loss is bound to another table.
    """
    for one in _losses(model):
        if one.labels is None:
            one.labels = labels
        if one.labels is not labels:
            raise ValueError(
                "The model's SelfLabelLoss reads another LabelTable than the one that this callback rewrites: give both one"
            )


def _losses(model: keras.Model) -> list[SelfLabelLoss]:
    """Returns each `SelfLabelLoss` of a compiled model."""
    loss = getattr(model, "loss", None)
    losses = loss.values() if isinstance(loss, dict) else loss if isinstance(loss, list | tuple) else [loss]
    return [one for one in losses if isinstance(one, SelfLabelLoss)]
