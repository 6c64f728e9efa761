"""The network that several workers look at images with: `MeanNetwork`, a copy with the mean of their moving statistics."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from sela_tf.models.build import bare_network
from sela_tf.models.replicas import replica_values
from sela_tf.runs.network import NetworkDescription
from sela_tf.transport.shards import Shards


class MeanNetwork:
    """A copy of a network that several workers train, on the devices of this process alone.

    Its passes send no messages, so that each worker looks at other images. Every replica has moving statistics of its own, unless batch
    normalisation is synchronised; the copy has their mean. No variable of the training is changed.

    Args:
        trained: the network that is trained.
        description: the description of that network, without another head.
        strategy: the strategy that it is trained under.
        shards: the workers.

    Attributes:
        network: the copy, as of the last `refresh`.
    """

    def __init__(self, trained: keras.Model, description: NetworkDescription, strategy: tf.distribute.Strategy, shards: Shards):
        self._trained, self._strategy, self._shards = bare_network(trained), strategy, shards
        devices = list(strategy.extended.worker_devices)
        local = tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
        with local.scope():
            self.network = description.build()
        # Callbacks that look at it ask for the steps that were taken.
        self.network.optimizer = trained.optimizer

    def refresh(self) -> keras.Model:
        """Gives the copy the present weights, and returns it. All workers have to call it together."""
        trainable = {id(variable) for variable in self._trained.trainable_variables}
        means = []
        for variable in self._trained.weights:
            if id(variable) not in trainable:
                means.append(replica_values(variable, self._strategy).mean(axis=0, dtype=np.float64) / self._shards.count)
        found = iter(self._shards.total(*means) if means else [])
        for own, variable in zip(self.network.weights, self._trained.weights, strict=True):
            first = replica_values(variable, self._strategy)[0]
            own.assign(first if id(variable) in trainable else next(found).astype(first.dtype))
        return self.network
