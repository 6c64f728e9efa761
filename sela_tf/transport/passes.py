"""The passes, compiled by XLA: one chunk of rows in, a sum of K numbers out.

With scores s_i = lam * log p_i and potentials v, the exact pass computes sum_i w_i softmax(s_i + v) [K], the stored one the same from
exp(s_i + v0) / z_i at earlier potentials v0. Each goes over blocks of rows that stay in the cache, so that a chunk is read from memory
once. `rows` is (log_probs [n, K],) or (features [n, D], kernel [D, K], bias [K]); `weights` [n] is 0 for rows that are not to count;
rows from `num_rows` on only pad. XLA drops assertions in silence: what can be wrong with the rows shows as a log-sum-exp that is not
finite, which the caller looks at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import tensorflow as tf

KERNEL_SCALE = 2.0**15
"""The sum of a stored row. Half precision goes from 2^-24 to 65504; this leaves exp(-27) of a row."""


class Compiled:
    """A function that XLA compiles once for each signature of its arguments: a `tf.function` that does not warn of many signatures."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self.function = tf.function(function, jit_compile=True)
        self._by_signature: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.concrete(*arguments)(*arguments)

    def concrete(self, *arguments: Any) -> Any:
        """The `tf.types.experimental.ConcreteFunction` for these."""
        flat = tf.nest.flatten(arguments)
        signature = tuple((*value.shape, value.dtype) if tf.is_tensor(value) else value for value in flat)
        if signature not in self._by_signature:
            self._by_signature[signature] = self.function.get_concrete_function(*arguments)
        return self._by_signature[signature]

    @property
    def num_signatures(self) -> int:
        return len(self._by_signature)


def _shifted_blocks(rows: tuple[tf.Tensor, ...], block_rows: int, lam: tf.Tensor, v: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """What gives s_i + v [block_rows, K] of a numbered block of a chunk's rows: (log_probs,) or (features, kernel, bias).

    Its last operation is the multiplication, because XLA gives sums and maxima of 2^15 entries or more of most else to YNNPACK, in a
    way that is not safe for threads that share an executable: `YnnFusionThunk` of TensorFlow 2.21 makes its subgraph at the first
    call of each thread and keeps the constants of all in one vector.
    """
    # outside the loop: a reshape inside makes XLA copy the chunk, at three times the time of a pass
    blocks, per_lam = tf.reshape(rows[0], [-1, block_rows, rows[0].shape[1]]), v / lam
    if len(rows) == 1:
        return lambda block: lam * (tf.cast(blocks[block], lam.dtype) + per_lam)
    return lambda block: lam * (tf.cast(tf.cast(blocks[block], rows[1].dtype) @ rows[1] + rows[2], lam.dtype) + per_lam)


@Compiled
def measure(
    rows: tuple[tf.Tensor, ...], weights: tf.Tensor, num_rows: tf.Tensor, lam: tf.Tensor, v: tf.Tensor, block_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """(sum_i w_i softmax_i [K], log-sum-exp of each row [n]); rows from `num_rows` on only pad."""
    shifted_block, num_blocks = _shifted_blocks(rows, block_rows, lam, v), weights.shape[0] // block_rows
    visited = (num_rows + block_rows - 1) // block_rows
    log_rows = tf.TensorArray(v.dtype, size=num_blocks, element_shape=[block_rows])
    w = tf.reshape(tf.cast(weights, v.dtype), [num_blocks, block_rows])

    def add_block(block: tf.Tensor, mass: tf.Tensor, log_rows: tf.TensorArray) -> tuple:
        shifted = shifted_block(block)
        highest = tf.reduce_max(shifted, axis=1)
        entries = tf.exp(shifted - highest[:, tf.newaxis])
        row_sum = tf.linalg.matvec(entries, tf.ones_like(v))
        log_row = highest + tf.math.log(row_sum)
        mass += tf.reduce_sum(entries * (w[block] / row_sum)[:, tf.newaxis], axis=0)
        return block + 1, mass, log_rows.write(block, log_row)

    _, mass, log_rows = tf.while_loop(lambda block, *_: block < visited, add_block, [0, tf.zeros_like(v), log_rows])
    return mass, tf.reshape(log_rows.stack(), [-1])


@Compiled
def log_mass(
    rows: tuple[tf.Tensor, ...], weights: tf.Tensor, log_rows: tf.Tensor, lam: tf.Tensor, v: tf.Tensor, block_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Log sum_i w_i softmax_i as (maximum [K], sum relative to it [K]), for clusters whose sum underflows."""
    shifted_block, num_blocks = _shifted_blocks(rows, block_rows, lam, v), weights.shape[0] // block_rows
    w = tf.reshape(tf.cast(weights, v.dtype), [num_blocks, block_rows, 1])
    per_row = tf.reshape(log_rows, [num_blocks, block_rows, 1])

    def add_block(block: tf.Tensor, highest: tf.Tensor, total: tf.Tensor) -> tuple:
        log_q = shifted_block(block) - per_row[block]
        log_q = tf.where(w[block] > 0, log_q + tf.math.log(w[block]), -np.inf)
        new = tf.maximum(highest, tf.reduce_max(log_q, axis=0))
        finite = tf.where(new > -np.inf, new, 0.0)
        return block + 1, new, total * tf.exp(highest - finite) + tf.reduce_sum(tf.exp(log_q - finite), axis=0)

    start = [0, tf.fill(tf.shape(v), tf.constant(-np.inf, v.dtype)), tf.zeros_like(v)]
    _, highest, total = tf.while_loop(lambda block, *_: block < num_blocks, add_block, start)
    return highest, total


@Compiled
def absorb(
    rows: tuple[tf.Tensor, ...], weights: tf.Tensor, log_rows: tf.Tensor, lam: tf.Tensor, v: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """exp(s_i + v) / z_i [n, K], rows of sum `KERNEL_SCALE`; rows of weight 0 are 0."""
    scores = lam * tf.cast(rows[0] if len(rows) == 1 else tf.cast(rows[0], rows[1].dtype) @ rows[1] + rows[2], lam.dtype)
    kernel = tf.exp(scores + v - log_rows[:, tf.newaxis])
    return tf.cast(tf.where(weights[:, tf.newaxis] > 0, kernel, 0.0) * KERNEL_SCALE, dtype)


@Compiled
def kernel_mass(kernel: tf.Tensor, num_rows: tf.Tensor, scaling: tf.Tensor, block_rows: int) -> tuple[tf.Tensor, tf.Tensor]:
    """(sum_i kernel_i / <kernel_i, scaling> [K], sum_i log <kernel_i, scaling>) of one chunk, read once."""
    blocks = tf.reshape(kernel, [-1, block_rows, kernel.shape[1]])
    visited = (num_rows + block_rows - 1) // block_rows

    def add_block(block: tf.Tensor, mass: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        entries = tf.cast(blocks[block], tf.float32)
        row_sum = tf.linalg.matvec(entries, scaling)
        counts = row_sum > 0
        mass += tf.reduce_sum(entries * tf.where(counts, 1.0 / row_sum, 0.0)[:, tf.newaxis], axis=0)
        return block + 1, mass, total + tf.reduce_sum(tf.where(counts, tf.math.log(row_sum / KERNEL_SCALE), 0.0))

    _, mass, total = tf.while_loop(lambda block, *_: block < visited, add_block, [0, tf.zeros_like(scaling), tf.zeros([])])
    return mass, total


@Compiled
def argmax(rows: tuple[tf.Tensor, ...], num_rows: tf.Tensor, lam: tf.Tensor, v: tf.Tensor, block_rows: int) -> tf.Tensor:
    """argmax_k (s_ik + v_k), int64 [n]."""
    shifted_block, num_blocks = _shifted_blocks(rows, block_rows, lam, v), rows[0].shape[0] // block_rows
    visited = (num_rows + block_rows - 1) // block_rows
    labels = tf.TensorArray(tf.int64, size=num_blocks, element_shape=[block_rows])

    def add_block(block: tf.Tensor, labels: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        best = tf.argmax(shifted_block(block), axis=1, output_type=tf.int64)
        return block + 1, labels.write(block, best)

    _, labels = tf.while_loop(lambda block, _: block < visited, add_block, [0, labels])
    return tf.reshape(labels.stack(), [-1])
