"""Networks: a functional backbone, an optional hidden layer, and the heads."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sela_tf.models.alexnet import alexnet
from sela_tf.models.applications import PREFIX, application, check_application
from sela_tf.models.batch_norm import FusedBatchNormalization
from sela_tf.models.dense import identity, mlp
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.resnet import resnet

Stages = dict[str, tf.Tensor]


class Architecture(NamedTuple):
    """A backbone of our own, over images or over vectors."""

    stages: Callable[..., Stages]
    """Takes inputs [B, H, W, C], or [B, D] of vectors, and the keywords width, synchronized and dtype; returns its named stages, the
    last one last."""
    width: int
    """Channels of its first stage as published."""
    smallest: int
    """Pixels that images have at least on each side; 0 where it takes vectors."""


def _imagenet(**options: Any) -> Architecture:
    # from 17 pixels on, no stage but the last sees a single pixel
    return Architecture(functools.partial(resnet, large_images=True, **options), width=64, smallest=17)


BACKBONES: dict[str, Architecture] = {
    **{f"resnet{6 * n + 2}": Architecture(functools.partial(resnet, blocks=(n, n, n)), width=16, smallest=2) for n in (1, 3, 9)},
    "resnet18": _imagenet(blocks=(2, 2, 2, 2)),
    "resnet50": _imagenet(blocks=(3, 4, 6, 3), bottleneck=True),
    "preact_resnet18": _imagenet(blocks=(2, 2, 2, 2), preactivation=True),
    "preact_resnet50": _imagenet(blocks=(3, 4, 6, 3), bottleneck=True, preactivation=True),
    "alexnet": Architecture(alexnet, width=96, smallest=63),
    "identity": Architecture(identity, width=0, smallest=0),
    "mlp": Architecture(mlp, width=512, smallest=0),
}

EMBEDDING = "embedding"
"""The layer whose output [B, D] is evaluated and exported: the backbone's pooled features, or the last of its fully connected layers."""


_STAGE = re.compile(r"stem|stage\d+|conv\d+|fc\d+")


def stage_names(model: keras.Model) -> list[str]:
    """Layers of a model of `build_model` whose outputs [B, h, w, C] or [B, D] are its stages, in order; the embedding is the last."""
    embedding = model.get_layer(EMBEDDING)
    own = [layer.name for layer in model.layers if _STAGE.fullmatch(layer.name)]
    last = [layer.name for layer in model.layers if layer.output is embedding.input]
    # a network of keras.applications may have layers of such names, too, but does not end in one
    return [*(own if set(last) <= set(own) else last), EMBEDDING]


def check_backbone(name: str) -> None:
    """Raises:
    ValueError: there is no such backbone.
    """
    if name.startswith(PREFIX):
        check_application(name.removeprefix(PREFIX))
    elif name not in BACKBONES:
        raise ValueError(f"`backbone` must be one of {', '.join(BACKBONES)}, or {PREFIX}NAME. Received: backbone={name!r}")


def build_model(
    backbone: str,
    *,
    image_shape: Sequence[int],
    num_heads: int,
    num_clusters: int,
    width: int = 0,
    hidden_units: int = 0,
    mean: Sequence[float] = (0.0,),
    variance: Sequence[float] = (1.0,),
    synchronized: bool = False,
    dtype: str | None = None,
    weights: str = "",
) -> keras.Model:
    """A functional model from images [B, H, W, C] with values in [0, 255], or from vectors [B, D], to logits [B, T, K].

    Args:
        backbone: a key of BACKBONES, or "applications:NAME" for a network of `keras.applications`.
        image_shape: (height, width, channels); (D,) for a backbone over vectors.
        num_heads: T.
        num_clusters: K.
        width: channels of the backbone's first stage, and so of all others in proportion; 0 for the published ones.
        hidden_units: width of a hidden layer (Dense without bias, batch normalisation, ReLU) between the embedding and the
            heads; 0 for none. The embedding that is evaluated stays the backbone's.
        mean: of each channel (or of all) over the training images, in [0, 255].
        variance: likewise; inputs become (x - mean) / sqrt(variance).
        synchronized: batch statistics over all replicas instead of each replica's own.
        dtype: a precision policy such as "mixed_bfloat16" for all but the heads; None for Keras' global policy.
        weights: a file to start a network of `keras.applications` from.

    Intermediate stages are layers named as the backbone names them, the pooled features "embedding", the hidden layer "hidden",
    the heads "heads".

    Raises:
        ValueError: the backbone is unknown, a number is out of range, or the images are too small.
    """
    check_backbone(backbone)
    named = backbone.startswith(PREFIX)
    if len(image_shape) not in (1, 3) or min(image_shape) < 1:
        raise ValueError(f"`image_shape` must be (height, width, channels) or (D,), all positive. Received: {tuple(image_shape)}")
    check_image_size(backbone, image_shape[:-1])
    if width < 0 or hidden_units < 0:
        raise ValueError(f"`width` and `hidden_units` must not be negative. Received: {width=}, {hidden_units=}")
    if named and (width or synchronized):
        raise ValueError(f"{backbone} has its own width and batch normalisation. Received: {width=}, {synchronized=}")
    if weights and not named:
        raise ValueError(f"`weights` are for {PREFIX}NAME only. Received: {weights=} for {backbone}")
    inputs = keras.Input(tuple(image_shape), name="image")
    # float32 whatever the policy: half precision has no room for the difference of a pixel from the mean
    x = keras.layers.Normalization(mean=list(mean), variance=list(variance), dtype="float32", name="normalization")(inputs)
    if named:
        stages = application(x, backbone.removeprefix(PREFIX), weights=weights, dtype=dtype)
    else:
        architecture = BACKBONES[backbone]
        stages = architecture.stages(x, width=width or architecture.width, synchronized=synchronized, dtype=dtype)
    x = list(stages.values())[-1]
    pool = keras.layers.GlobalAveragePooling2D if len(x.shape) == 4 else keras.layers.Identity
    x = pool(dtype=dtype, name=EMBEDDING)(x)
    if hidden_units:
        x = keras.layers.Dense(hidden_units, use_bias=False, kernel_initializer="he_normal", dtype=dtype, name="hidden_dense")(x)
        x = FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name="hidden_bn")(x)
        x = keras.layers.ReLU(dtype=dtype, name="hidden")(x)
    # in half precision lam would magnify the rounding of the logits
    logits = MultiHead(num_heads, num_clusters, dtype="float32", name="heads")(x)
    return keras.Model(inputs, logits, name=f"sela_{backbone.removeprefix(PREFIX).lower()}")


def check_image_size(backbone: str, size: Sequence[int]) -> None:
    """Refuses images that a known backbone does not take.

    Args:
        backbone: as in `build_model`.
        size: (height, width); () of vectors.

    Raises:
        ValueError: they are too small; or vectors where images are taken, or the other way round.
    """
    smallest = 1 if backbone.startswith(PREFIX) else BACKBONES[backbone].smallest
    if bool(smallest) != bool(size):
        raise ValueError(
            f"--backbone={backbone} takes {'images' if smallest else 'vectors'}, and the data set has "
            f"{'vectors: give --backbone=identity or mlp' if smallest else 'images'}"
        )
    if size and min(size) < smallest:
        raise ValueError(
            f"images of {size[0]} x {size[1]} are too small for {backbone}, which takes {smallest} "
            "pixels or more on each side: give a larger --image_size, or another --backbone"
        )


def with_rotation_head(model: keras.Model) -> keras.Model:
    """The outputs "heads" [B, T, K], `model`'s own, and "rotation" [B, 4]: logits of the quarter turns, of the features under the heads.

    SeLa+Rot of the paper; both models share all layers but the new one.
    """
    heads = find_multi_head(model)
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    rotation = keras.layers.Dense(4, kernel_initializer=initializer, dtype="float32", name="rotation")(heads.input)
    return keras.Model(model.input, {"heads": heads.output, "rotation": rotation}, name=f"{model.name}_rot")


def bare_network(model: keras.Model) -> keras.Model:
    """From images to the heads' logits, as a model of its own: the same layers, without another head, an optimizer or a loss."""
    return keras.Model(model.input, find_multi_head(model).output, name=model.name.removesuffix("_rot"))
