"""The optimizers of a run and their learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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

    Args:
        learning_rate: the rate, or its schedule.
        momentum: the momentum.
        coupled_weight_decay: the weight decay.
        num_slow: the number of first variables, those of a backbone, that have a rate of their own.
        slow_share: their share of the learning rate.
        frozen_steps: the first steps, in which these variables stay as they are.
        name: the name of the optimizer.
        kwargs: further arguments of Keras' optimizers.
    """

    def __init__(
        self,
        learning_rate=0.05,
        momentum: float = 0.9,
        coupled_weight_decay: float = 0.0,
        num_slow: int = 0,
        slow_share: float = 1.0,
        frozen_steps: int = 0,
        name: str = "coupled_sgd",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = coupled_weight_decay
        self.num_slow, self.slow_share, self.frozen_steps = num_slow, slow_share, frozen_steps

    def build(self, variables: Sequence) -> None:
        if self.built:
            return
        super().build(variables)
        self.velocities = [self.add_variable_from_reference(variable, "velocity") for variable in variables]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        velocity = self.velocities[index]
        gradient = tf.cast(gradient, variable.dtype) + self.coupled_weight_decay * tf.convert_to_tensor(variable)
        moved = self.momentum * tf.convert_to_tensor(velocity) + gradient
        rate = tf.cast(learning_rate, variable.dtype)
        if index < self.num_slow:
            # A frozen variable has no velocity either, so that it does not jump when it is let go.
            moved = moved * tf.cast(tf.convert_to_tensor(self.iterations) >= self.frozen_steps, variable.dtype)
            rate = rate * self.slow_share
        self.assign(velocity, moved)
        self.assign_sub(variable, rate * moved)

    def get_config(self) -> dict:
        own = ("momentum", "coupled_weight_decay", "num_slow", "slow_share", "frozen_steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def check_optimizer(name: str) -> None:
    """Checks that the optimizer `name` works with the installed packages.

    Raises:
        ConfigError: it does not; with the reason and the remedy.
    """
    if name != "sgd" and (reason := decoupled.why_unavailable(name)):
        raise ConfigError(reason)


def make_optimizer(
    name: str,
    rates: keras.optimizers.schedules.LearningRateSchedule,
    *,
    momentum: float,
    weight_decay: float,
    **of_backbone: Any,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer that has no state yet. Its decay applies to all variables.

    Args:
        name: "sgd", `CoupledSGD`; "sgdw", Keras' SGD with decoupled weight decay; "lamb", LAMB with decoupled weight decay.
        rates: the learning rate by step.
        momentum: the momentum of sgd and sgdw.
        weight_decay: coupled, added to the gradient times the weight; decoupled, taken off the weight times learning rate and weight.
        of_backbone: `num_slow`, `slow_share` and `frozen_steps` of CoupledSGD, where they are asked for.
    """
    if name == "lamb":
        return decoupled.lamb(rates, weight_decay=weight_decay)
    if name == "sgdw":
        return decoupled.sgdw(rates, momentum=momentum, weight_decay=weight_decay)
    return CoupledSGD(rates, momentum=momentum, coupled_weight_decay=weight_decay, **of_backbone)


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
