"""Networks of `keras.applications`, as they come but for their preprocessing and classifier."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator

import keras
import tensorflow as tf

PREFIX = "applications:"


def check_application(name: str) -> None:
    """Raises:
    ValueError: `keras.applications` has no network of this name, or one whose preprocessing cannot be left out.
    """
    names = sorted(name for name, value in vars(keras.applications).items() if inspect.isfunction(value))
    if name not in names:
        raise ValueError(f"`backbone` {PREFIX}NAME must name one of {', '.join(names)}. Received: {PREFIX}{name}")
    if name.startswith("EfficientNetB"):
        raise ValueError(
            f"{PREFIX}{name} cannot do without its own preprocessing: take one of EfficientNetV2. Received: {PREFIX}{name}"
        )


def application(inputs: tf.Tensor, name: str, *, weights: str = "", dtype: str | None = None) -> dict[str, tf.Tensor]:
    """The one stage, the last, of the network `name` over `inputs` [B, H, W, C], by its layer's own name.

    Args:
        inputs: normalised images.
        name: such as "EfficientNetV2B0", "ConvNeXtTiny", "MobileNetV3Small".
        weights: a file of its weights without the classifier; "" to start from its initialisers.
        dtype: a precision policy; None for Keras' global one.

    Raises:
        ValueError: as `check_application`; the images are too small for it, or the weights are not its own.
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
            f"{PREFIX}{name} cannot be built over images of {size}: are they too small? Give a larger --image_size (Keras says: {said})"
        ) from error
    if weights:
        try:
            network.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{weights!r} does not hold the weights of {PREFIX}{name} without its classifier ({said})") from error
    output = network.output
    if 0 in output.shape[1:]:
        raise ValueError(f"images of {size} are too small for {PREFIX}{name}: give a larger --image_size")
    return {network.layers[-1].name: output}


@contextlib.contextmanager
def _policy(dtype: str | None) -> Iterator[None]:
    before = keras.mixed_precision.global_policy()
    if dtype is not None:
        keras.mixed_precision.set_global_policy(dtype)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
