"""Differences between the supported releases: TensorFlow 2.15 with Keras 2.15, and TensorFlow 2.16 to 2.21 with Keras 3.

No module outside this room asks for a release. Where one way works with both Kerases, it is taken, and nothing stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from sela_tf.compat.keras_registration import register_with_keras

RELEASE = ".".join(tf.__version__.split(".")[:2])
"""The release of TensorFlow that is running, such as "2.21"."""

NEWEST = "2.21"
"""The newest release that the package is tested with, alone with all extras."""

RELEASES_WITHOUT_RECORD = ("2.20", "2.21")
"""The releases that checkpoints without a record of theirs may be of: sela_tf ran on no other before it kept one."""

IS_KERAS_3 = hasattr(keras, "ops")

# The arguments with which an integer target reaches a loss exactly. Keras 3 casts targets to the dtype of the loss, and float64 is exact up
# to 2**53; Keras 2 leaves integers as they are.
EXACT_TARGETS: dict[str, Any] = {"dtype": "float64"} if IS_KERAS_3 else {}

LossScaleOptimizer = keras.optimizers.LossScaleOptimizer if IS_KERAS_3 else keras.mixed_precision.LossScaleOptimizer


def has_compile_metrics(model: keras.Model) -> bool:
    """Tests for `metrics` or `weighted_metrics` among the arguments of the model's `compile`."""
    if IS_KERAS_3:
        return any(metric.name == "compile_metrics" for metric in model.metrics)
    given = model.compiled_metrics
    return bool(given and (given._user_metrics or given._user_weighted_metrics))


def keep_in_checkpoints(model: keras.Model, state: tf.train.experimental.PythonState | None) -> None:
    """Makes the checkpoints of `model` hold a state, or no longer, for None.

    `BackupAndRestore` of Keras 2 writes a checkpoint of the model. That of Keras 3 writes a weights file, which has the state of the loss.
    """
    if IS_KERAS_3:
        return
    if hasattr(model, "_sela_state"):
        del model._sela_state
    if state is not None:
        model._sela_state = state


class _Keras2Optimizer(keras.optimizers.Optimizer):
    """Keras 3's interface for writing an optimizer, over that of Keras 2."""

    def __init__(self, learning_rate: Any, name: str, **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)

    @property
    def built(self) -> bool:
        return getattr(self, "_built", False)

    def build(self, variables: Sequence) -> None:
        super().build(variables)
        self._built = True

    def _get_variable_index(self, variable: tf.Variable) -> int:
        return self._index_dict[self._var_key(variable)]

    def _update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        self.update_step(gradient, variable, self.learning_rate)

    def assign(self, variable: tf.Variable, value: tf.Tensor) -> None:
        variable.assign(value)

    def assign_sub(self, variable: tf.Variable, value: tf.Tensor) -> None:
        variable.assign_sub(value)

    def get_config(self) -> dict:
        return {**super().get_config(), "learning_rate": self._serialize_hyperparameter(self._learning_rate)}


# The base class of an optimizer of one's own.
Optimizer: Any = keras.optimizers.Optimizer if IS_KERAS_3 else _Keras2Optimizer

# Where this module was the first to load Keras, that was too early.
register_with_keras()


def build_optimizer(optimizer: Any, variables: Sequence) -> None:
    """Makes the state of an optimizer, in the scope of its strategy. The optimizers of tensorflow-addons have no `build`."""
    make = optimizer.build if hasattr(optimizer, "build") else optimizer._create_all_weights
    make(variables)


def optimizer_variables(optimizer: Any) -> list:
    """Returns the state of an optimizer, that of its loss scale included."""
    variables = optimizer.variables
    found = list(variables() if callable(variables) else variables)
    if not IS_KERAS_3 and isinstance(optimizer, LossScaleOptimizer):
        # Keras 2 does not count them as its variables.
        found += [optimizer._loss_scale.current_loss_scale, optimizer._loss_scale.counter]
    return found


def learning_rate_of(optimizer: Any) -> float:
    """Returns the learning rate of an optimizer's next step."""
    if IS_KERAS_3:
        return float(tf.convert_to_tensor(optimizer.learning_rate))
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    # In Keras 2 `learning_rate` is that of the last step; in the optimizers of tensorflow-addons it is the schedule.
    rate = getattr(optimizer, "_learning_rate", optimizer.learning_rate)
    return float(tf.convert_to_tensor(rate(optimizer.iterations) if callable(rate) else rate))


def learning_rate_variable(optimizer: Any) -> Any:
    """Returns the variable of an optimizer's learning rate; None where it is a schedule or a function."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    # The optimizers of tensorflow-addons keep it elsewhere.
    rate = getattr(optimizer, "_learning_rate", getattr(optimizer, "_hyper", {}).get("learning_rate"))
    return rate if hasattr(rate, "assign") else None


def steps_per_execution(model: keras.Model) -> int:
    """Returns the number of optimizer steps between two calls of the callbacks."""
    return int(model.steps_per_execution if IS_KERAS_3 else tf.convert_to_tensor(model._steps_per_execution))


def of_each_replica(variable: Any, strategy: tf.distribute.Strategy) -> tuple[tf.Variable, ...]:
    """Returns the variables of each replica that a variable of Keras or TensorFlow stands for; on one device, one."""
    return tuple(strategy.experimental_local_results(tensorflow_variable(variable)))


def tensorflow_variable(variable: Any) -> tf.Variable:
    """Returns the variable of TensorFlow that a variable of Keras stands for, or is."""
    return variable.value if IS_KERAS_3 and isinstance(variable, keras.Variable) else variable
