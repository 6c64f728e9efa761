"""The workers of a run on several machines: `Workers`, whose messages are TensorFlow's own collectives."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from sela_tf.transport.shards import Shards


class Workers(Shards):
    """The processes of a `tf.distribute.MultiWorkerMirroredStrategy`, each with the same number of devices.

    The first device of a worker speaks for it. Every worker has to send its messages in the same order.

    Args:
        strategy: the strategy of this process.
        index: the number of this process, from 0.
        count: the number of processes.

    Attributes:
        num_messages: the messages sent so far.
        num_bytes: the bytes in them, of this worker.
    """

    def __init__(self, strategy: tf.distribute.Strategy, index: int, count: int):
        self._strategy, self.index, self.count = strategy, index, count
        self.num_messages = self.num_bytes = 0
        devices = strategy.num_replicas_in_sync // count

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
        def sum_up(values: tf.Tensor) -> Any:
            def of_replica(own: tf.Tensor) -> tf.Tensor:
                replica = tf.distribute.get_replica_context()
                speaks = tf.math.floormod(replica.replica_id_in_sync_group, devices) == 0
                return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(speaks, own, tf.zeros_like(own)))

            return strategy.run(of_replica, args=(values,))

        self._sum_up = sum_up

    def total(self, *arrays: Any) -> list[np.ndarray]:
        parts = [np.asarray(array, np.float64) for array in arrays]
        flat = np.concatenate([part.ravel() for part in parts])
        self.num_messages += 1
        self.num_bytes += flat.nbytes
        sums = self._strategy.experimental_local_results(self._sum_up(tf.constant(flat)))[0].numpy()
        pieces = np.split(sums, np.cumsum([part.size for part in parts])[:-1])
        return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]

    def joined(self, *arrays: np.ndarray) -> list[np.ndarray]:
        # Each worker adds zeros where the others' values are. TensorFlow's own gathering takes several times as long a message, and crashes
        # where nobody has a value.
        sizes = np.zeros((len(arrays), self.count))
        sizes[:, self.index] = [array.size for array in arrays]
        ends = np.cumsum(self.total(sizes)[0]).astype(np.int64)
        whole = np.zeros(ends[-1])
        for array, end in zip(arrays, ends[self.index :: self.count], strict=True):
            whole[end - array.size : end] = array.ravel()
        parts = np.split(self.total(whole)[0] if len(whole) else whole, ends[self.count - 1 : -1 : self.count])
        return [part.reshape(-1, *array.shape[1:]).astype(array.dtype) for part, array in zip(parts, arrays, strict=True)]

    def of_first(self, array: np.ndarray) -> np.ndarray:
        return self.total(array if self.index == 0 else np.zeros_like(array))[0]
