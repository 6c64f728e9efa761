"""The networks of `keras.applications` as backbones, without their preprocessing and their classifier."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import keras
import tensorflow as tf

from sela_tf.models.backbones.errors import BackboneError
from sela_tf.models.keras_files import check_keras_file

PREFIX = "applications:"
"""The beginning of the name of such a backbone, before the name of the network."""
IMAGENET = "imagenet"
"""The word for the weights that Keras publishes of such a network, trained on ImageNet with classes."""


def check_application(name: str) -> None:
    """Checks the name of a network of `keras.applications`.

    Raises:
        BackboneError: there is no network of this name, or its preprocessing cannot be left out.
    """
    names = sorted(name for name, value in vars(keras.applications).items() if inspect.isfunction(value))
    if name not in names:
        raise BackboneError(f"`backbone` {PREFIX}NAME must name one of {', '.join(names)}. Received: {PREFIX}{name}")
    if name.startswith("EfficientNetB"):
        raise BackboneError(
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
        BackboneError: `check_application` refuses the name, the images are too small for the network, or the weights are another's.
    """
    check_application(name)
    if weights and not os.path.isfile(weights):
        raise BackboneError(f"there is no file of weights {weights!r} for {PREFIX}{name}")
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
        raise BackboneError(
            f"{PREFIX}{name} cannot be built over images of {size}: are they too small? Give a larger `image_size` (Keras says: {said})"
        ) from error
    if weights:
        try:
            check_keras_file(weights, weights_only=True)
            network.load_weights(weights)
        except (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise BackboneError(
                f"{weights!r} does not hold the weights of {PREFIX}{name} without its classifier ({said})"
            ) from error
    output = network.output
    if 0 in output.shape[1:]:
        raise BackboneError(f"images of {size} are too small for {PREFIX}{name}: give a larger `image_size`")
    return {network.layers[-1].name: output}


class MissingWeightsError(BackboneError):
    """Weights that Keras publishes are not in its cache, and may not be downloaded."""


class _FoundError(Exception):
    """Ends the building of a network at the place where Keras asks for the file of its weights."""


@functools.cache
def imagenet_weights(name: str, *, download: bool) -> str:
    """Returns the file of the weights that Keras publishes of a network of `keras.applications`, without the classifier.

    Args:
        name: the name of the network.
        download: lets Keras download the file into its cache, $KERAS_HOME or ~/.keras.

    Raises:
        MissingWeightsError: the file is not there, or is another than the published one, and `download` is False.
        BackboneError: `check_application` refuses the name.
    """
    check_application(name)
    found: list[str] = []
    get_file = keras.utils.get_file

    def find(fname: str, origin: str, *args: object, **options: object) -> None:
        # Keras would remove a file that is not the published one before it tries to download it.
        found.append(get_file(fname, origin, *args, **options) if download else _in_cache(fname, origin, options))
        raise _FoundError

    replaced = mock.patch.object(sys.modules[get_file.__module__], "get_file", find)
    with replaced, contextlib.suppress(_FoundError), warnings.catch_warnings():
        # Some warn that no size is named, which decides on nothing but the classifier.
        warnings.simplefilter("ignore", UserWarning)
        getattr(keras.applications, name)(include_top=False, weights=IMAGENET)
    if not found:
        raise MissingWeightsError(f"Keras publishes no weights of {PREFIX}{name}")
    return found[0]


def _in_cache(fname: str, origin: str, options: dict[str, object]) -> str:
    """Returns the path of a file in the cache of Keras, whose digest is checked where Keras knows it."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    path = os.path.join(home, str(options.get("cache_subdir", "datasets")), fname)
    wanted = str(options.get("file_hash") or options.get("md5_hash") or "")
    if not os.path.isfile(path):
        raise MissingWeightsError(f"{path} is not there, and Keras would download it from {origin}")
    kind = "sha256" if len(wanted) == 64 else "md5"
    with open(path, "rb") as file:
        if wanted and hashlib.file_digest(file, kind).hexdigest() != wanted:
            raise MissingWeightsError(f"{path} is not the file that Keras publishes, and would be replaced from {origin}")
    return path


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
