"""Networks: a functional backbone, an optional hidden layer, and the heads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from sela_tf.models.batch_norm import FusedBatchNormalization
from sela_tf.models.heads import MultiHead
from sela_tf.models.resnet import resnet

Backbone = Callable[..., dict[str, tf.Tensor]]
"""Takes inputs [B, H, W, C] and the keywords width, synchronized and dtype; returns its named stages, the last one last."""

BACKBONES: dict[str, Backbone] = {
    "resnet8": functools.partial(resnet, blocks_per_stage=1),
    "resnet20": functools.partial(resnet, blocks_per_stage=3),
    "resnet56": functools.partial(resnet, blocks_per_stage=9),
}

EMBEDDING = "embedding"
"""The layer whose output [B, D], the backbone's pooled features, is evaluated and exported."""


def build_model(
    backbone: str,
    *,
    image_shape: Sequence[int],
    num_heads: int,
    num_clusters: int,
    width: int = 16,
    hidden_units: int = 0,
    mean: Sequence[float] = (0.0,),
    variance: Sequence[float] = (1.0,),
    synchronized: bool = False,
    dtype: str | None = None,
) -> keras.Model:
    """A functional model from images [B, H, W, C] with values in [0, 255] to logits [B, T, K].

    Args:
        backbone: a key of BACKBONES.
        image_shape: (height, width, channels).
        num_heads: T.
        num_clusters: K.
        width: channels of the backbone's first stage.
        hidden_units: width of a hidden layer (Dense without bias, batch normalisation, ReLU) between the embedding and the
            heads; 0 for none. The embedding that is evaluated stays the backbone's.
        mean: of each channel (or of all) over the training images, in [0, 255].
        variance: likewise; inputs become (x - mean) / sqrt(variance).
        synchronized: batch statistics over all replicas instead of each replica's own.
        dtype: a precision policy such as "mixed_bfloat16" for all but the heads; None for Keras' global policy.

    Intermediate stages are layers named as the backbone names them, the pooled features "embedding", the hidden layer "hidden",
    the heads "heads".

    Raises:
        ValueError: the backbone is unknown, or a number is out of range.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"`backbone` must be one of {', '.join(BACKBONES)}. Received: backbone={backbone!r}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"`image_shape` must be (height, width, channels), all positive. Received: {tuple(image_shape)}")
    if width < 1 or hidden_units < 0:
        raise ValueError(f"`width` must be positive and `hidden_units` not negative. Received: {width=}, {hidden_units=}")
    inputs = keras.Input(tuple(image_shape), name="image")
    # float32 whatever the policy: half precision has no room for the difference of a pixel from the mean
    x = keras.layers.Normalization(mean=list(mean), variance=list(variance), dtype="float32", name="normalization")(inputs)
    stages = BACKBONES[backbone](x, width=width, synchronized=synchronized, dtype=dtype)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype, name=EMBEDDING)(list(stages.values())[-1])
    if hidden_units:
        x = keras.layers.Dense(hidden_units, use_bias=False, kernel_initializer="he_normal", dtype=dtype, name="hidden_dense")(x)
        x = FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name="hidden_bn")(x)
        x = keras.layers.ReLU(dtype=dtype, name="hidden")(x)
    # in half precision lam would magnify the rounding of the logits
    logits = MultiHead(num_heads, num_clusters, dtype="float32", name="heads")(x)
    return keras.Model(inputs, logits, name=f"sela_{backbone}")
