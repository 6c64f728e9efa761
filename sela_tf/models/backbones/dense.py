"""Networks over vectors that stand for images: none at all, and one of two fully connected layers."""

from __future__ import annotations

import keras
import tensorflow as tf

from sela_tf.models.batch_norm import FusedBatchNormalization


def identity(inputs: tf.Tensor, *, width: int, synchronized: bool = False, dtype: str | None = None) -> dict[str, tf.Tensor]:
    """The vectors [B, D] themselves, for heads, or a hidden layer and heads, that learn alone.

    Raises:
        ValueError: a width was asked for.
    """
    if width:
        raise ValueError(f"identity is as wide as the vectors: leave --width out. Received: width={width}")
    return {"fc0": keras.layers.Identity(dtype=dtype, name="fc0")(inputs)}


def mlp(inputs: tf.Tensor, *, width: int, synchronized: bool = False, dtype: str | None = None) -> dict[str, tf.Tensor]:
    """The stages "fc1" and "fc2" [B, width]: dense layers without biases, each with batch normalisation and ReLU."""
    stages: dict[str, tf.Tensor] = {}
    x = inputs
    for name in ("fc1", "fc2"):
        x = keras.layers.Dense(width, use_bias=False, kernel_initializer="he_normal", dtype=dtype, name=f"{name}_dense")(x)
        x = FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name=f"{name}_bn")(x)
        x = stages[name] = keras.layers.ReLU(dtype=dtype, name=name)(x)
    return stages
