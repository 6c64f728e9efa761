"""SGD and LAMB with decoupled weight decay: Keras 3's own, or those of tensorflow-addons, which are brought to Keras 3's formula.

Before each step w is reduced by learning_rate decay w, in LAMB outside the trust ratio.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import keras
import tensorflow as tf

from sela_tf.compat.releases import IS_KERAS_3

_EPSILON = 1e-6
"""The constant below LAMB's fraction, that of the paper's authors (arXiv 1904.00962) and of tensorflow-addons; Keras has 1e-7."""


def why_unavailable(name: str) -> str | None:
    """Returns the reason why the optimizer "sgdw" or "lamb" cannot be used here, and the remedy; None where it can."""
    if IS_KERAS_3:
        if name == "lamb" and not hasattr(keras.optimizers, "Lamb"):
            return f"`optimizer=lamb` needs Keras 3.5 or newer, and this is {keras.__version__}: upgrade keras, or take `optimizer=sgdw`"
        return None
    try:
        _addons()
    except Exception as error:  # An installation that does not fit fails in many ways.
        absent = isinstance(error, ModuleNotFoundError) and error.name == "tensorflow_addons"
        reason = "is not installed" if absent else f"cannot be imported ({type(error).__name__}: {error})"
        return (
            f"`optimizer={name}` needs tensorflow-addons on TensorFlow {tf.__version__}, which {reason}: pip install 'sela-tf[addons]', "
            "or take `optimizer=sgd`"
        )
    return None


def sgdw(rates: keras.optimizers.schedules.LearningRateSchedule, *, momentum: float, weight_decay: float) -> Any:
    """Returns SGD with momentum and decoupled weight decay."""
    if IS_KERAS_3:
        return keras.optimizers.SGD(rates, momentum=momentum, weight_decay=weight_decay)
    # The decay of tensorflow-addons is not multiplied by the learning rate.
    optimizer: Any = _addons().optimizers.SGDW(
        lambda: weight_decay * rates(optimizer.iterations), learning_rate=rates, momentum=momentum
    )
    return optimizer


def lamb(rates: keras.optimizers.schedules.LearningRateSchedule, *, weight_decay: float) -> Any:
    """Returns LAMB (arXiv 1904.00962, algorithm 2, the trust ratio without bounds) with decoupled weight decay."""
    if IS_KERAS_3:
        return keras.optimizers.Lamb(rates, epsilon=_EPSILON, weight_decay=weight_decay)
    return _decoupled_lamb()(rates, weight_decay)


@functools.cache
def _decoupled_lamb() -> type:
    """Returns the class of LAMB on tensorflow-addons, which is imported only if it is asked for."""

    LAMB: Any = _addons().optimizers.LAMB

    class DecoupledLAMB(LAMB):
        """LAMB of tensorflow-addons, whose own decay would be part of the trust ratio."""

        def __init__(self, rates: Any, decoupled_weight_decay: float):
            super().__init__(rates, epsilon=_EPSILON, weight_decay=0.0)
            self._decoupled_weight_decay = decoupled_weight_decay

        def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None) -> tf.Operation:
            rate = self._decayed_lr(var.dtype.base_dtype)
            with tf.control_dependencies([var.assign_sub(rate * self._decoupled_weight_decay * var)]):
                return super()._resource_apply_dense(grad, var, apply_state)

    return DecoupledLAMB


def _addons() -> Any:
    """Returns tensorflow-addons, without its announcement that it is no longer developed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*TensorFlow Addons \(TFA\) has ended", UserWarning)
        import tensorflow_addons
    return tensorflow_addons
