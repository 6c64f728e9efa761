"""Checks of the arguments of `compile` and `fit`: Keras takes the second of each pair for a class, where a self-labelling has an index."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import keras

from sela_tf.compat.releases import has_compile_metrics


def check_fit(model: keras.Model, *, validation_shows_training_images: bool) -> None:
    """Checks the arguments of the `compile` and of the running `fit` of `model`; warns of those that take example indices for classes.

    Raises:
        ValueError: there are validation data that are not said to be images of the label table.
    """
    arguments = _arguments_of_fit(model)
    if arguments.get("validation_data") is not None:
        check_validation(validation_shows_training_images)
    if arguments.get("class_weight") is not None:
        warnings.warn(
            "`class_weight` of `fit` weighs an image by its example index, as if that were a class: leave it out. Weights of images are "
            "the third of each element of the data set",
            stacklevel=2,
        )
    # The metrics of a model with several outputs may be those of another output.
    if len(model.outputs) == 1 and has_compile_metrics(model):
        warnings.warn(
            "`metrics` of `compile` compare the heads' logits with example indices, which means nothing: leave them out. "
            "sela_tf.KNNMonitor and ClusterMonitor have figures of the training",
            stacklevel=2,
        )


def check_validation(validation_shows_training_images: bool) -> None:
    """Checks that validation data are said to be images of the label table.

    Raises:
        ValueError: they are not.
    """
    if not validation_shows_training_images:
        raise ValueError(
            "`validation_data` of `fit` have no labels unless they are images of the label table: look at other images with "
            "sela_tf.KNNMonitor, or after training. If they are the table's, under their own indices, say so: "
            "SelfLabelling(..., validation_shows_training_images=True)"
        )


def _arguments_of_fit(model: keras.Model) -> Mapping[str, Any]:
    """Returns the arguments of the running call of `model.fit`, which Keras does not tell callbacks; none in another loop."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return frame.f_locals
        frame = frame.f_back
    return {}
