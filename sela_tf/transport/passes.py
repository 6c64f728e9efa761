"""The passes over the log-probabilities, compiled by XLA: a chunk of rows goes in, sums of K numbers come out.

With scores s_i = lam * log p_i and potentials v, an exact pass computes sum_i w_i softmax(s_i + v) [K]. A stored pass computes the same
from exp(s_i + v0) / z_i, which was stored at earlier potentials v0. Each pass goes over blocks of rows that stay in the cache, so that a
chunk is read from memory once.

The arguments `rows` say where the n rows of the chunk lie; `weights` [n] are 0 for rows that do not
count; rows from `num_rows` on only pad the chunk. XLA drops assertions in silence: values that are wrong show as a log-sum-exp that is
not finite, which the caller checks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

STORED_ROW_SUM = 2.0**15
"""The sum of a stored row. Half precision goes from 2^-24 to 65504, so that entries down to exp(-27) of their row are kept."""


_FAR = -75.0
"""Entries farther below the largest of their row are taken to be this far below it: their exponentials would be denormal numbers, or
become such when they are divided by the sum of their row, and processors of Intel take several times as long for these."""


class Compiled:
    """A function that XLA compiles once for each signature of its arguments: a `tf.function` that does not warn of many signatures."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self.function = tf.function(function, jit_compile=True)
        self._by_signature: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.concrete(*arguments)(*arguments)

    def concrete(self, *arguments: Any) -> Any:
        """Returns the `tf.types.experimental.ConcreteFunction` for these arguments, compiled now if it was not before."""
        flat = tf.nest.flatten(arguments)
        signature = tuple((*value.shape, value.dtype) if tf.is_tensor(value) else value for value in flat)
        if signature not in self._by_signature:
            self._by_signature[signature] = self.function.get_concrete_function(*arguments)
        return self._by_signature[signature]

    @property
    def num_signatures(self) -> int:
        """The number of signatures that it was compiled for."""
        return len(self._by_signature)


class ChunkRows(NamedTuple):
    """The place of the rows of a chunk, and what makes scores of them."""

    table: tf.Tensor
    """Log-probabilities or logits [N, K]: all rows, so that none are copied, or those of the chunk."""
    start: tf.Tensor
    """The first row of the chunk in `table`, int32."""


def _shifted_blocks(rows: ChunkRows, block_rows: int, lam: tf.Tensor, v: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from the first row of a block, an index of the table, to the block's shifted scores s_i + v [block_rows, K].

    That index must be carried by a loop, from `rows.start` on. A slice at an index that is known when XLA compiles is compiled for this
    index, and so anew for every chunk.

    Its last operation is the multiplication. XLA gives sums and maxima of 2^15 entries or more of most other operations to YNNPACK, in a
    way that is not safe for threads that share an executable: `YnnFusionThunk` of TensorFlow 2.21 makes its subgraph at the first
    call of each thread and keeps the constants of all threads in one vector.
    """
    per_lam = v / lam
    size = [block_rows, v.shape[0]]
    return lambda first: lam * (tf.cast(tf.slice(rows.table, [first, 0], size), lam.dtype) + per_lam)


@Compiled
def measure(
    rows: ChunkRows,
    weights: tf.Tensor,
    num_rows: tf.Tensor,
    lam: tf.Tensor,
    v: tf.Tensor,
    cutoff: tf.Tensor,
    block_rows: int,
    keep: str,
) -> tuple[tf.Tensor, ...]:
    """Makes an exact pass over a chunk, and keeps some of what it computes.

    Args:
        rows: as described above, like the following.
        weights: [n].
        num_rows: the number of rows that are not padding.
        lam: the factor of the log-probabilities.
        v: the potentials, [K].
        cutoff: the distance from the log-sum-exp of their row up to which entries are near.
        block_rows: the number of rows in a block.
        keep: "near" for which entries of the rows that count are near; "float16" or "float32" for the rows as `absorb` stores them; "labels"
            for the largest of each row; "" for nothing.

    Returns:
        sum_i w_i softmax_i [K] and the log-sum-exp of each row [n], in the dtype of `v`; and what is kept, each [n, K] or [n].
    """
    shifted_block, num_blocks = _shifted_blocks(rows, block_rows, lam, v), weights.shape[0] // block_rows
    visited = (num_rows + block_rows - 1) // block_rows
    shape = [block_rows] if keep == "labels" else [block_rows, v.shape[0]]
    kept_types = {"": [], "labels": [tf.int64], "near": [tf.bool]}.get(keep, [keep])
    log_rows = tf.TensorArray(v.dtype, size=num_blocks, element_shape=[block_rows])
    kept = [tf.TensorArray(dtype, size=num_blocks, element_shape=shape) for dtype in kept_types]
    w = tf.reshape(tf.cast(weights, v.dtype), [num_blocks, block_rows])

    def add_block(block: tf.Tensor, first: tf.Tensor, mass: tf.Tensor, log_rows: tf.TensorArray, *kept: tf.TensorArray) -> tuple:
        shifted = shifted_block(first)
        groups = _group_maxima(shifted)
        highest = tf.reduce_max(groups, axis=1)
        entries = tf.exp(tf.maximum(shifted - highest[:, tf.newaxis], _FAR))
        row_sum = tf.linalg.matvec(entries, tf.ones_like(v))
        log_row = highest + tf.math.log(row_sum)
        per_row = (w[block] / row_sum)[:, tf.newaxis]
        mass += tf.reduce_sum(entries * per_row, axis=0)
        if keep == "near":
            least = tf.where(w[block] > 0, log_row - cutoff, np.inf)
            new = [shifted >= least[:, tf.newaxis]]
        elif keep == "labels":
            new = [_argmax(shifted, groups)]
        elif keep:
            far = entries < 1.01 * math.exp(_FAR)
            scale = tf.where(per_row > 0, STORED_ROW_SUM / row_sum[:, tf.newaxis], 0.0)
            new = [tf.cast(tf.where(far, tf.zeros_like(entries), entries * scale), keep)]
        written = [array.write(block, each) for array, each in zip(kept, new, strict=True)] if keep else []
        return block + 1, first + block_rows, mass, log_rows.write(block, log_row), *written

    state = [0, rows.start, tf.zeros_like(v), log_rows, *kept]
    _, _, mass, log_rows, *kept = tf.while_loop(lambda block, *_: block < visited, add_block, state)
    return mass, tf.reshape(log_rows.stack(), [-1]), *(tf.reshape(array.stack(), [-1, *shape[1:]]) for array in kept)


_GROUPS = 8
"""The number of parts of the columns whose maximum is taken first: that is a maximum of vectors, where XLA would otherwise take the maximum
of one number after another."""


def _group_starts(num_clusters: int) -> list[int]:
    """Returns the first columns of parts of equal width, which may overlap; together they have all columns."""
    width = -(-num_clusters // _GROUPS)
    return sorted({min(part * width, num_clusters - width) for part in range(_GROUPS)})


def _group_maxima(shifted: tf.Tensor) -> tf.Tensor:
    """Returns the maxima over the parts of the columns, [block_rows, G]: the j-th of the j-th columns of all parts."""
    block_rows, num_clusters = shifted.shape
    starts, width = _group_starts(num_clusters), -(-num_clusters // _GROUPS)
    if len(starts) * width == num_clusters:
        return tf.reduce_max(tf.reshape(shifted, [block_rows, len(starts), width]), axis=1)
    return functools.reduce(tf.maximum, [shifted[:, start : start + width] for start in starts])


@Compiled
def log_mass(
    rows: ChunkRows, weights: tf.Tensor, log_rows: tf.Tensor, lam: tf.Tensor, v: tf.Tensor, block_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log sum_i w_i softmax_i as (its largest term [K], the sum relative to that [K]), for clusters whose sum underflows.

    `log_rows` [n] are the rows' log-sum-exp as measured at `v`.
    """
    shifted_block, num_blocks = _shifted_blocks(rows, block_rows, lam, v), weights.shape[0] // block_rows
    w = tf.reshape(tf.cast(weights, v.dtype), [num_blocks, block_rows, 1])
    per_row = tf.reshape(log_rows, [num_blocks, block_rows, 1])

    def add_block(block: tf.Tensor, first: tf.Tensor, highest: tf.Tensor, total: tf.Tensor) -> tuple:
        log_q = shifted_block(first) - per_row[block]
        log_q = tf.where(w[block] > 0, log_q + tf.math.log(w[block]), -np.inf)
        new = tf.maximum(highest, tf.reduce_max(log_q, axis=0))
        finite = tf.where(new > -np.inf, new, 0.0)
        total = total * tf.exp(highest - finite) + tf.reduce_sum(tf.exp(log_q - finite), axis=0)
        return block + 1, first + block_rows, new, total

    start = [0, rows.start, tf.fill(tf.shape(v), tf.constant(-np.inf, v.dtype)), tf.zeros_like(v)]
    _, _, highest, total = tf.while_loop(lambda block, *_: block < num_blocks, add_block, start)
    return highest, total


@Compiled
def absorb(
    rows: ChunkRows, weights: tf.Tensor, log_rows: tf.Tensor, lam: tf.Tensor, v: tf.Tensor, block_rows: int, dtype: tf.DType
) -> tf.Tensor:
    """Absorbs the potentials into the rows: returns exp(s_i + v) / z_i, `dtype` [n, K], scaled to rows of sum `STORED_ROW_SUM`.

    `log_rows` [n] are the log z_i as measured at `v`. Rows of weight 0 are 0. "Absorption" is the term of B. Schmitzer, Stabilized sparse
    scaling algorithms for entropy regularized transport problems, SIAM J. Sci. Comput. 2019.
    """
    shifted_block, num_blocks = _shifted_blocks(rows, block_rows, lam, v), weights.shape[0] // block_rows
    counts = tf.reshape(weights > 0, [num_blocks, block_rows, 1])
    per_row = tf.reshape(log_rows, [num_blocks, block_rows, 1])
    kernels = tf.TensorArray(dtype, size=num_blocks, element_shape=[block_rows, v.shape[0]])

    def add_block(block: tf.Tensor, first: tf.Tensor, kernels: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        kernel = tf.exp(shifted_block(first) - per_row[block]) * STORED_ROW_SUM
        return block + 1, first + block_rows, kernels.write(block, tf.cast(tf.where(counts[block], kernel, 0.0), dtype))

    _, _, kernels = tf.while_loop(lambda block, *_: block < num_blocks, add_block, [0, rows.start, kernels])
    return tf.reshape(kernels.stack(), [-1, v.shape[0]])


@Compiled
def stored_mass(stored: tf.Tensor, num_rows: tf.Tensor, scaling: tf.Tensor, block_rows: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes a stored pass over a chunk, which is read once.

    Args:
        stored: [n, K], as returned by `absorb`.
        num_rows: the number of rows that are not padding.
        scaling: float32 [K], exp(v - v0) up to a factor.
        block_rows: the number of rows in a block.

    Returns:
        sum_i stored_i / <stored_i, scaling>, float32 [K], and sum_i log <stored_i, scaling> / STORED_ROW_SUM, float32.
    """
    blocks = tf.reshape(stored, [-1, block_rows, stored.shape[1]])
    visited = (num_rows + block_rows - 1) // block_rows

    def add_block(block: tf.Tensor, mass: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        entries = tf.cast(blocks[block], tf.float32)
        row_sum = tf.linalg.matvec(entries, scaling)
        counts = row_sum > 0
        mass += tf.reduce_sum(entries * tf.where(counts, 1.0 / row_sum, 0.0)[:, tf.newaxis], axis=0)
        return block + 1, mass, total + tf.reduce_sum(tf.where(counts, tf.math.log(row_sum / STORED_ROW_SUM), 0.0))

    _, mass, total = tf.while_loop(lambda block, *_: block < visited, add_block, [0, tf.zeros_like(scaling), tf.zeros([])])
    return mass, total


@tf.function(reduce_retracing=True)
def near_top(rows: tf.Tensor, u: tf.Tensor, cutoff: tf.Tensor, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the entries near the top of their row, on a graphics card: what comes of it has no size that XLA could know.

    Args:
        rows: log-probabilities [n, K].
        u: what is added to them, [K], in whose dtype they are compared.
        cutoff: the distance from the row's largest sum up to which an entry is near.
        counts: bool [n], the rows that are looked at.

    Returns:
        which entries are near, bool [n, K]; the largest magnitude of a largest sum; and False where a sum is NaN or +inf.
    """
    sums = tf.cast(rows, u.dtype) + u
    top = tf.reduce_max(sums, axis=1)
    counts &= top != -np.inf
    near = (sums >= tf.maximum(top - cutoff, u.dtype.min)[:, tf.newaxis]) & counts[:, tf.newaxis]
    return near, tf.reduce_max(tf.where(counts, tf.abs(top), tf.zeros_like(top))), tf.reduce_all(sums < np.inf)


@Compiled
def argmax(rows: ChunkRows, weights: tf.Tensor, num_rows: tf.Tensor, lam: tf.Tensor, v: tf.Tensor, block_rows: int) -> tf.Tensor:
    """Returns the labels of a chunk's rows, argmax_k (s_ik + v_k), int64 [n]."""
    shifted_block, num_blocks = _shifted_blocks(rows, block_rows, lam, v), weights.shape[0] // block_rows
    visited = (num_rows + block_rows - 1) // block_rows
    labels = tf.TensorArray(tf.int64, size=num_blocks, element_shape=[block_rows])

    def add_block(block: tf.Tensor, first: tf.Tensor, labels: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        shifted = shifted_block(first)
        return block + 1, first + block_rows, labels.write(block, _argmax(shifted, _group_maxima(shifted)))

    _, _, labels = tf.while_loop(lambda block, *_: block < visited, add_block, [0, rows.start, labels])
    return tf.reshape(labels.stack(), [-1])


def _argmax(shifted: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    """Returns the column of the largest entry of each row, int64 [block_rows], by the maxima of groups of columns."""
    starts = tf.constant(_group_starts(shifted.shape[1]), tf.int64)
    columns = tf.argmax(groups, axis=1, output_type=tf.int64)[:, tf.newaxis] + starts
    members = tf.argmax(tf.gather(shifted, columns, batch_dims=1), axis=1, output_type=tf.int64)
    return tf.gather(columns, members, batch_dims=1)
