"""The optimizers of a run and their learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from sela_tf.compat import decoupled
from sela_tf.compat.releases import Optimizer
from sela_tf.settings.fields import ConfigError


@keras.saving.register_keras_serializable("sela_tf")
class CoupledSGD(Optimizer):
    """SGD in PyTorch's form, which the method's figures were found with.

    Weight decay is coupled: g <- gradient + decay w; v <- momentum v + g; w <- w - learning_rate v.

    Keras' SGD differs twice: its `weight_decay` is decoupled from the gradient, which at momentum .9 acts ten times weaker, and its
    velocity holds the learning rate, so that a drop takes effect over several steps. Decay applies to all variables, biases and
    batch normalisation included, as in the reference.
    """

    def __init__(
        self, learning_rate=0.05, momentum: float = 0.9, coupled_weight_decay: float = 0.0, name: str = "coupled_sgd", **kwargs
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = coupled_weight_decay

    def build(self, variables: Sequence) -> None:
        if self.built:
            return
        super().build(variables)
        self.velocities = [self.add_variable_from_reference(variable, "velocity") for variable in variables]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        velocity = self.velocities[self._get_variable_index(variable)]
        gradient = tf.cast(gradient, variable.dtype) + self.coupled_weight_decay * tf.convert_to_tensor(variable)
        moved = self.momentum * tf.convert_to_tensor(velocity) + gradient
        self.assign(velocity, moved)
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * moved)

    def get_config(self) -> dict:
        return {**super().get_config(), "momentum": self.momentum, "coupled_weight_decay": self.coupled_weight_decay}


def check_optimizer(name: str) -> None:
    """Checks that the optimizer `name` works with the installed packages.

    Raises:
        ConfigError: it does not; with the reason and the remedy.
    """
    if name != "sgd" and (reason := decoupled.why_unavailable(name)):
        raise ConfigError(reason)


def make_optimizer(
    name: str, rates: keras.optimizers.schedules.LearningRateSchedule, *, momentum: float, weight_decay: float
) -> keras.optimizers.Optimizer:
    """Returns an optimizer that has no state yet. Its decay applies to all variables.

    Args:
        name: "sgd", `CoupledSGD`; "sgdw", Keras' SGD with decoupled weight decay; "lamb", LAMB with decoupled weight decay.
        rates: the learning rate by step.
        momentum: the momentum of sgd and sgdw.
        weight_decay: coupled, added to the gradient times the weight; decoupled, taken off the weight times learning rate and weight.
    """
    if name == "lamb":
        return decoupled.lamb(rates, weight_decay=weight_decay)
    if name == "sgdw":
        return decoupled.sgdw(rates, momentum=momentum, weight_decay=weight_decay)
    return CoupledSGD(rates, momentum=momentum, coupled_weight_decay=weight_decay)


def learning_rate_schedule(
    learning_rate: float, *, schedule: str, epochs: int, steps_per_epoch: int, drops: Sequence[float]
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate by optimizer step.

    Args:
        learning_rate: the rate at the beginning.
        schedule: "step", which divides by 10 at the whole epochs that the shares `drops` round up to, or "cosine", which falls to 0.
        epochs: the length of the training.
        steps_per_epoch: optimizer steps of an epoch.
        drops: shares of the epochs, in (0, 1].
    """
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps=epochs * steps_per_epoch)
    if not drops:
        return keras.optimizers.schedules.PolynomialDecay(learning_rate, decay_steps=1, end_learning_rate=learning_rate)
    # A little is taken off before rounding up, so that .3 of 10 is 3 although .3 * 10 is not.
    boundaries = [math.ceil(share * epochs - 1e-9) * steps_per_epoch for share in drops]
    values = [learning_rate * 0.1**i for i in range(len(boundaries) + 1)]
    # Keras keeps the earlier value on the boundary itself: the step before is the last one at the old rate
    return keras.optimizers.schedules.PiecewiseConstantDecay([boundary - 1 for boundary in boundaries], values)
