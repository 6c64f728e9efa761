"""The AlexNet of the paper: batch normalisation after each convolution, dropout before the fully connected layers, no Sobel filter."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from sela_tf.models.batch_norm import FusedBatchNormalization

_CONVOLUTIONS = ((96, 11, 4, 2, True), (256, 5, 1, 2, True), (384, 3, 1, 1, False), (384, 3, 1, 1, False), (256, 3, 1, 1, True))
"""(channels, kernel, stride, padding on each side, pooling afterwards) of each convolution at the published width."""
_WIDTH, _UNITS = 96, 4096
"""The published width, the channels of the first convolution, and the units of its fully connected layers."""
_DROPOUT = 0.5


def alexnet(inputs: tf.Tensor, *, width: int, synchronized: bool = False, dtype: str | None = None) -> dict[str, tf.Tensor]:
    """Builds the stages of AlexNet.

    Weights start as in the reference code: normal distributions of standard deviation sqrt(2 / (kernel^2 channels)) for convolutions and .01
    for fully connected layers, and biases of zero.

    Args:
        inputs: normalised images [B, H, W, C], 224 x 224 in the paper.
        width: the channels of the first convolution, with all other channels and units in proportion; 96 in the paper.
        synchronized: batch statistics of all replicas together.
        dtype: a precision policy; None for Keras' global one.

    Returns:
        The stages "conv1" to "conv5" [B, h, w, c], after their ReLU and before pooling, and "fc6" and "fc7" [B, units].
    """
    x, stages = inputs, {}
    for number, (channels, kernel, stride, padding, pools) in enumerate(_CONVOLUTIONS, 1):
        name, channels = f"conv{number}", max(1, channels * width // _WIDTH)
        if stride > 1:
            # The padding "same" would be 3 on one side and 4 on the other.
            x = keras.layers.ZeroPadding2D(padding, dtype=dtype, name=f"{name}_padding")(x)
        deviation = math.sqrt(2.0 / (kernel * kernel * channels))
        x = keras.layers.Conv2D(
            channels,
            kernel,
            strides=stride,
            padding="valid" if stride > 1 else "same",
            kernel_initializer=keras.initializers.RandomNormal(stddev=deviation),
            dtype=dtype,
            name=f"{name}_conv",
        )(x)
        x = FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name=f"{name}_bn")(x)
        x = stages[name] = keras.layers.ReLU(dtype=dtype, name=name)(x)
        if pools:
            x = keras.layers.MaxPooling2D(3, 2, dtype=dtype, name=f"{name}_pool")(x)
    x = keras.layers.Flatten(dtype=dtype, name="flatten")(x)
    for name in ("fc6", "fc7"):
        x = keras.layers.Dropout(_DROPOUT, dtype=dtype, name=f"{name}_dropout")(x)
        initializer = keras.initializers.RandomNormal(stddev=0.01)
        units = max(1, _UNITS * width // _WIDTH)
        x = keras.layers.Dense(units, kernel_initializer=initializer, dtype=dtype, name=f"{name}_dense")(x)
        x = stages[name] = keras.layers.ReLU(dtype=dtype, name=name)(x)
    return stages
