"""A user's own small model, its vectors in batches and its labels, for the tests of table, loss, label pass and callback."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import sela_tf
from sela_tf.models.heads import MultiHead, find_multi_head

N, K, T = 96, 4, 2


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but_on_lanes(*values):
    """A case that the older releases of TensorFlow are tested with, too."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.lane])


def make_model(*, normalise: bool = True) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    if normalise:
        x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, sela_tf.MultiHead(T, K)(x))


def batches(values: np.ndarray, index: np.ndarray | None = None, size: int = 16) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((values, np.arange(len(values)) if index is None else index)).batch(size)


def compiled(table: sela_tf.LabelTable | None, **options) -> keras.Model:
    """Run eagerly where graphs are not what is tested: tracing takes longer than these few steps."""
    model = make_model()
    options = {"run_eagerly": True, **options}
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss=sela_tf.SelfLabelLoss(table), **options)
    model.optimizer.build(model.trainable_variables)
    return model


def by_argmax(logits: sela_tf.LinearLogits, **kwargs) -> sela_tf.Assignment:
    """An `assign` that needs no compilation."""
    return sela_tf.Assignment(logits.log_probs().argmax(axis=1), np.zeros(K))


def table_of(rng) -> sela_tf.LabelTable:
    """A table in whose state nothing is as it was at first."""
    table = sela_tf.LabelTable(T, K, N, seed=5)
    for head in [0, 0, 1]:
        table.assign(head, rng.integers(0, K, N), rng.normal(size=K), lam=7.0 + head)
    return table


def same_state(one: sela_tf.LabelTable, two: sela_tf.LabelTable) -> bool:
    states = one.state(), two.state()
    assert set(states[0]) == set(states[1]) == {"labels", "potentials", "lam", "num_changes", "num_relabellings"}
    return all(np.array_equal(value, states[1][name], equal_nan=name == "lam") for name, value in states[0].items())


def features_and_heads(model: keras.Model, values: np.ndarray) -> tuple[np.ndarray, MultiHead]:
    heads = find_multi_head(model)
    return keras.Model(model.input, heads.input)(values).numpy(), heads
