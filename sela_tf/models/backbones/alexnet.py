"""AlexNet as the paper trains it: batch normalisation after each convolution, dropout before the fully connected layers, no Sobel filter."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from sela_tf.models.batch_norm import FusedBatchNormalization

# (channels of 96, kernel, stride, padding on each side, pooling afterwards) of each convolution, and the units of 96 channels.
_CONVOLUTIONS = ((96, 11, 4, 2, True), (256, 5, 1, 2, True), (384, 3, 1, 1, False), (384, 3, 1, 1, False), (256, 3, 1, 1, True))
_WIDTH, _UNITS = 96, 4096
_DROPOUT = 0.5


def alexnet(inputs: tf.Tensor, *, width: int, synchronized: bool = False, dtype: str | None = None) -> dict[str, tf.Tensor]:
    """Stages of AlexNet over `inputs` [B, H, W, C], 224 x 224 in the paper; all channels and units in proportion to `width`, 96 there.

    Convolutions start from N(0, sqrt(2 / (k k out))), fully connected layers from N(0, .01), biases from zero (reference code).

    Returns:
        The named stages: "conv1" to "conv5" [B, h, w, c] after their ReLU and before pooling, "fc6" and "fc7" [B, units].
    """
    x, stages = inputs, {}
    for number, (channels, kernel, stride, padding, pools) in enumerate(_CONVOLUTIONS, 1):
        name, channels = f"conv{number}", max(1, channels * width // _WIDTH)
        if stride > 1:  # "same" would pad by 3 and 4
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
