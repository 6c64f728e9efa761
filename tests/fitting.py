"""A small `model.fit` that labels itself, for the tests of what watches it."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

import sela_tf

N, K, T, BATCH = 192, 6, 2, 16
STEPS = N // BATCH


def blobs(rng: np.random.Generator) -> np.ndarray:
    """Six overlapping blobs: something to learn, and something to change one's mind about."""
    return (3 * rng.normal(size=(K, 8))[np.arange(N) % K] + rng.normal(size=(N, 8))).astype(np.float32)


def pairs(values: np.ndarray, size: int = BATCH) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((values, np.arange(len(values)))).batch(size)


def make_model(*, relu_bias: float = 0.0, momentum: float | None = None) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8,))
    x = inputs
    if momentum is not None:
        x = keras.layers.BatchNormalization(momentum=momentum)(x)
    x = keras.layers.Dense(16, activation="relu", bias_initializer=keras.initializers.Constant(relu_bias), name="features")(x)
    return keras.Model(inputs, sela_tf.MultiHead(T, K)(x))
