"""The networks of `keras.applications` as backbones, without their preprocessing and their classifier."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator

import keras
import tensorflow as tf

PREFIX = "applications:"
"""The beginning of the name of such a backbone, before the name of the network."""


def check_application(name: str) -> None:
    """Checks the name of a network of `keras.applications`.

    Raises:
        ValueError: there is no network of this name, or its preprocessing cannot be left out.
    """
    names = sorted(name for name, value in vars(keras.applications).items() if inspect.isfunction(value))
    if name not in names:
        raise ValueError(f"`backbone` {PREFIX}NAME must name one of {', '.join(names)}. Received: {PREFIX}{name}")
    if name.startswith("EfficientNetB"):
        raise ValueError(
            f"{PREFIX}{name} cannot do without its own preprocessing: take one of EfficientNetV2. Received: {PREFIX}{name}"
        )


def application(inputs: tf.Tensor, name: str, *, weights: str = "", dtype: str | None = None) -> dict[str, tf.Tensor]:
    """Builds a network of `keras.applications`.

    Args:
        inputs: normalised images [B, H, W, C].
        name: the name of the network, such as "EfficientNetV2B0", "ConvNeXtTiny" or "MobileNetV3Small".
        weights: a file with its weights without the classifier; "" for its initialisers.
        dtype: a precision policy; None for Keras' global one.

    Returns:
        Its last stage alone, by its layer's own name.

    Raises:
        ValueError: `check_application` refuses the name, the images are too small for the network, or the weights are another's.
    """
    check_application(name)
    if weights and not os.path.isfile(weights):
        raise ValueError(f"there is no file of weights {weights!r} for {PREFIX}{name}")
    build = getattr(keras.applications, name)
    known = inspect.signature(build).parameters
    options = {"include_top": False, "weights": None, "input_tensor": inputs}
    options |= {"include_preprocessing": False} if "include_preprocessing" in known else {}
    size = f"{inputs.shape[1]} x {inputs.shape[2]}"
    try:
        with _policy(dtype):
            network = build(**options)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{PREFIX}{name} cannot be built over images of {size}: are they too small? Give a larger `image_size` (Keras says: {said})"
        ) from error
    if weights:
        try:
            network.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{weights!r} does not hold the weights of {PREFIX}{name} without its classifier ({said})") from error
    output = network.output
    if 0 in output.shape[1:]:
        raise ValueError(f"images of {size} are too small for {PREFIX}{name}: give a larger `image_size`")
    return {network.layers[-1].name: output}


@contextlib.contextmanager
def _policy(dtype: str | None) -> Iterator[None]:
    """Sets Keras' global precision policy for a while; None keeps the present one."""
    before = keras.mixed_precision.global_policy()
    if dtype is not None:
        keras.mixed_precision.set_global_policy(dtype)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
