"""The network that the settings of a run ask for."""

from __future__ import annotations

import keras
import tensorflow as tf

from sela_tf.runs.network import NetworkDescription, describe_network
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data


def description_of(config: SelaConfig, data: Data) -> NetworkDescription:
    """The network that the settings ask for, for these images."""
    shape = (*data.size, data.train.channels)
    return describe_network(config, shape, tuple(data.mean.tolist()), tuple(data.variance.tolist()))


def first_network(config: SelaConfig, description: NetworkDescription, strategy: tf.distribute.Strategy) -> keras.Model:
    """The network before its first step, the same for the same seed."""
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        return description.build(weights=config.backbone_weights)
