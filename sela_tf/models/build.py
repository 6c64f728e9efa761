"""Functional networks of a backbone, an optional hidden layer and the heads, and cuts of a network."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras
import numpy as np

from sela_tf.models.backbones import BACKBONES, check_backbone, check_image_size
from sela_tf.models.backbones.applications import PREFIX, application
from sela_tf.models.backbones.errors import BackboneError
from sela_tf.models.batch_norm import FusedBatchNormalization
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.layer_names import EMBEDDING, HEADS, HIDDEN, NORMALIZATION, ROTATION

_STAGE = re.compile(r"stem|stage\d+|conv\d+|fc\d+")
"""The names that our own backbones give to their stages."""


def stage_names(model: keras.Model) -> list[str]:
    """Returns the names of the layers whose outputs, [B, h, w, C] or [B, D], are the stages of a model of `build_model`, in order.

    The embedding is the last of them.
    """
    embedding = model.get_layer(EMBEDDING)
    own = [layer.name for layer in model.layers if _STAGE.fullmatch(layer.name)]
    last = [layer.name for layer in model.layers if layer.output is embedding.input]
    # A network of `keras.applications` may have layers of such names, too, but does not end in one.
    return [*(own if set(last) <= set(own) else last), EMBEDDING]


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
    """Builds a functional model from images [B, H, W, C] with values in [0, 255], or from vectors [B, D], to logits [B, T, K].

    Its layers are named: the stages as the backbone names them, the backbone's pooled output "embedding", the hidden layer "hidden" and the
    MultiHead layer "heads".

    Args:
        backbone: a key of BACKBONES, or "applications:NAME" for a network of `keras.applications`.
        image_shape: (height, width, channels) of images; (D,) of vectors.
        num_heads: the number T of heads.
        num_clusters: the number K of clusters of each head.
        width: the channels of the backbone's first stage, with all others in proportion; 0 for the published number.
        hidden_units: the width of a hidden layer (Dense without bias, batch normalisation, ReLU) between the embedding and the heads; 0 for
            none. The embedding, which is evaluated, stays the backbone's.
        mean: the mean of each channel, or of all, over the training images, in [0, 255].
        variance: the variance of each channel, or of all; inputs become (x - mean) / sqrt(variance).
        synchronized: batch statistics of all replicas together instead of each replica's own.
        dtype: a precision policy such as "mixed_bfloat16" for all but the heads; None for Keras' global policy.
        weights: a file with the initial weights of a network of `keras.applications`; "" for its initialisers.

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
        raise BackboneError(f"{backbone} has its own width and batch normalisation. Received: {width=}, {synchronized=}")
    if weights and not named:
        raise BackboneError(
            f"`weights` are for {PREFIX}NAME only; use `load_weights` of the model. Received: {weights=} for {backbone}"
        )
    inputs = keras.Input(tuple(image_shape), name="image")
    # The policy is float32 in any case: half precision cannot hold the difference of a pixel from the mean.
    # Not all releases of Keras 3 take one number for all channels.
    moments = {name: np.broadcast_to(each, image_shape[-1]).tolist() for name, each in (("mean", mean), ("variance", variance))}
    x = keras.layers.Normalization(**moments, dtype="float32", name=NORMALIZATION)(inputs)
    if named:
        stages = application(x, backbone.removeprefix(PREFIX), weights=weights, dtype=dtype)
    else:
        architecture = BACKBONES[backbone]
        stages = architecture.stages(x, width=width or architecture.width, synchronized=synchronized, dtype=dtype)
    x = list(stages.values())[-1]
    pool = keras.layers.GlobalAveragePooling2D if len(x.shape) == 4 else keras.layers.Identity
    x = pool(dtype=dtype, name=EMBEDDING)(x)
    if hidden_units:
        x = keras.layers.Dense(hidden_units, use_bias=False, kernel_initializer="he_normal", dtype=dtype, name=f"{HIDDEN}_dense")(x)
        x = FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name=f"{HIDDEN}_bn")(x)
        x = keras.layers.ReLU(dtype=dtype, name=HIDDEN)(x)
    # The heads are float32, because lam would magnify the rounding of logits in half precision.
    logits = MultiHead(num_heads, num_clusters, dtype="float32", name=HEADS)(x)
    return keras.Model(inputs, logits, name=f"sela_{backbone.removeprefix(PREFIX).lower()}")


def with_rotation_head(model: keras.Model) -> keras.Model:
    """Adds a head that classifies the quarter turns of an image, from the same inputs as the other heads: SeLa+Rot of the paper.

    Returns:
        A model with the outputs "heads" [B, T, K] and "rotation" [B, 4], both logits. It shares all layers with `model` but the new one.
    """
    heads = find_multi_head(model)
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    rotation = keras.layers.Dense(4, kernel_initializer=initializer, dtype="float32", name=ROTATION)(heads.input)
    return keras.Model(model.input, {HEADS: heads.output, ROTATION: rotation}, name=f"{model.name}_rot")


def bare_network(model: keras.Model) -> keras.Model:
    """Returns the network [B, …] -> logits [B, T, K] inside `model`: the same layers, without another head, an optimizer or a loss."""
    return keras.Model(model.input, find_multi_head(model).output, name=model.name.removesuffix("_rot"))


def cut_at(model: keras.Model, *outputs: str | keras.KerasTensor) -> keras.Model:
    """Returns a functional model that shares the layers of `model` and has other outputs.

    Args:
        model: a functional model.
        outputs: each the name of a layer, for its output, or a symbolic tensor that follows from the inputs of `model`. The cut gives one
            tensor for one of them, a list for several.

    Raises:
        ValueError: there is no layer of such a name.
    """
    tensors = [model.get_layer(each).output if isinstance(each, str) else each for each in outputs]
    return keras.Model(model.inputs, tensors[0] if len(tensors) == 1 else tensors)


def cut_at_heads(model: keras.Model) -> keras.Model:
    """Returns the part of `model` that ends in the input [B, D] of its one MultiHead layer.

    Raises:
        ValueError: the model has no MultiHead layer or several, or is not functional.
    """
    heads = find_multi_head(model)
    try:
        return cut_at(model, heads.input)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"The model must be functional, to be cut at its heads. Received: {type(model).__name__}") from error
