"""Backbones over vectors that stand for images: the identity, and a perceptron of two fully connected layers."""

from __future__ import annotations

import keras
import tensorflow as tf

from sela_tf.models.backbones.errors import BackboneError
from sela_tf.models.batch_norm import FusedBatchNormalization


def identity(inputs: tf.Tensor, *, width: int, synchronized: bool = False, dtype: str | None = None) -> dict[str, tf.Tensor]:
    """Returns the vectors themselves as the stage "fc0", for heads, or a hidden layer and heads, that are trained alone.

    Args:
        inputs: vectors [B, D].
        width: 0, as the vectors have a width of their own.
        synchronized: without effect, as there are no batch statistics.
        dtype: a precision policy; None for Keras' global one.

    Raises:
        ValueError: `width` is not 0.
    """
    if width:
        raise BackboneError(f"identity is as wide as the vectors: leave `width` out. Received: width={width}")
    return {"fc0": keras.layers.Identity(dtype=dtype, name="fc0")(inputs)}


def mlp(inputs: tf.Tensor, *, width: int, synchronized: bool = False, dtype: str | None = None) -> dict[str, tf.Tensor]:
    """Builds the stages "fc1" and "fc2" [B, width]: dense layers without biases, each with batch normalisation and ReLU.

    Args:
        inputs: vectors [B, D].
        width: the units of each layer.
        synchronized: batch statistics of all replicas together.
        dtype: a precision policy; None for Keras' global one.
    """
    stages: dict[str, tf.Tensor] = {}
    x = inputs
    for name in ("fc1", "fc2"):
        x = keras.layers.Dense(width, use_bias=False, kernel_initializer="he_normal", dtype=dtype, name=f"{name}_dense")(x)
        x = FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name=f"{name}_bn")(x)
        x = stages[name] = keras.layers.ReLU(dtype=dtype, name=name)(x)
    return stages
