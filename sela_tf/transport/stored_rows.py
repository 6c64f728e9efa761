"""Rows of scores that are stored without their exponentials still to be taken: `StoredRows`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sela_tf.transport import passes
from sela_tf.transport.placement import Placement
from sela_tf.transport.shards import Shards
from sela_tf.transport.threads import map_in_threads


class StoredRows:
    """The rows exp(s_i + v0) / z_i at earlier potentials v0, for stored passes: two multiplications and additions an entry.

    Args:
        chunks: the stored chunks, float16 or float32 [n, K], each with the number of its rows that are not padding.
        potentials: v0, float64 [K].
        block_rows: the number of rows in a block of a pass.
        num_counted: the number of rows that count, of all workers.
        num_threads: the number of threads that chunks are shared between.
        shards: the workers that have a share of the rows each.
        placement: the devices that the chunks are on.
    """

    def __init__(
        self,
        chunks: list[tuple[tf.Tensor, tf.Tensor]],
        potentials: np.ndarray,
        block_rows: int,
        *,
        num_counted: int,
        num_threads: int,
        shards: Shards,
        placement: Placement,
    ):
        self._chunks, self._stored_at, self._block_rows = chunks, potentials, block_rows
        self._num_counted, self._num_threads, self._shards, self._placement = num_counted, num_threads, shards, placement

    def measure(self, potentials: np.ndarray) -> tuple[np.ndarray, float]:
        """Makes a stored pass at `potentials`: returns (m float64 [K], the mean change of the rows' log-sum-exp since v0)."""
        moved = potentials - self._stored_at
        centre = 0.5 * (moved.max() + moved.min())
        scaling = tf.constant(np.exp(moved - centre), tf.float32)

        def measure_chunk(number: int) -> tuple[np.ndarray, np.float32]:
            with self._placement.scope(number):
                mass, change = passes.stored_mass(*self._chunks[number], scaling, self._block_rows)
                return mass.numpy(), change.numpy()

        masses, changes = zip(*map_in_threads(measure_chunk, range(len(self._chunks)), self._num_threads), strict=True)
        mass, change = self._shards.total(np.sum(masses, axis=0, dtype=np.float64), np.sum(changes, dtype=np.float64))
        return mass * scaling.numpy() / self._num_counted, float(change) / self._num_counted + centre
