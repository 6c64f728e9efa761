"""N rows in chunks: what is summed over all of them, by the compiled passes, and is K numbers when it comes back.

All chunks of a solve have one shape, so that XLA compiles once; they are shared between threads, and summed in their order whatever
thread or device computed them, so the result does not depend on their number. A chunk is where a shard of another machine would go:
only the K sums cross. Its rows may lie in a tensor, in a file larger than memory, or be computed from features.
"""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from sela_tf.transport import passes
from sela_tf.transport.linear_logits import LinearLogits, float32_tensor

# Entries of a chunk: calling a compiled function costs 0.1 ms, reading this many takes twenty times as long.
_CHUNK_ENTRIES = 2**22
# Entries that NumPy is given at once.
_SLICE_ENTRIES = 2**20
# Below this many entries a second thread costs more than it saves.
_ENTRIES_TO_SHARE = 2**20
# Entries, and most rows, of a block that stays in the cache while it is used: (exact pass, stored rows, labels), and of features. Where
# XLA has more than one thread it would share larger blocks of the latter two between them, and take three times as long; the limits of
# the others keep sums and maxima from YNNPACK (passes.py). What a graphics card works on at once is the whole chunk.
_BLOCKS = ((2**15, 128), (2**12, 16), (2**11, 16))
_LINEAR_BLOCK = (2**19, 256)
# Column sums below this have lost digits to underflow, or all of them.
_SMALLEST_MASS = 1e-30
# Beyond such potentials or row sums, float32 no longer resolves a score to 1e-3.
_FLOAT32_RANGE = 4000.0

_Result = TypeVar("_Result")


class Measurement(NamedTuple):
    """What one exact pass says about potentials."""

    log_mass: np.ndarray
    """float64 [K], log m_k."""
    log_rows: np.ndarray
    """float32 (float64 where need be) [N], log sum_k exp(s_ik + v_k)."""
    mean_log_row: float
    """The weighted mean of `log_rows`."""


class _Chunk(NamedTuple):
    start: int
    """Of the first row."""
    new: slice
    """Rows, counted from `start`, that no earlier chunk has."""
    rows: tuple[tf.Tensor, ...]
    weights: tf.Tensor
    num_rows: tf.Tensor


class Rows:
    """N rows of scores lam * log p, in chunks.

    Args:
        source: log-probabilities or logits [N, K], a tensor or anything that slices to an array; or `LinearLogits`.
        lam: what scores are log-probabilities times.
        counted: bool [N], False where a row is left out of the sums; None for all.
        num_threads: threads that chunks are shared between; None for as many as there are processors.
    """

    def __init__(self, source: Any, *, lam: float, counted: np.ndarray | None = None, num_threads: int | None = None):
        self.lam, self.counted = lam, counted
        self.is_linear = isinstance(source, LinearLogits)
        self._table = source.features if self.is_linear else source
        self._parameters = [float32_tensor(source.kernel), float32_tensor(source.bias)] if self.is_linear else []
        self.num_rows = int(self._table.shape[0])
        self.num_clusters = int((source.kernel if self.is_linear else source).shape[1])
        self.num_counted = self.num_rows if counted is None else int(counted.sum())
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self.dtype = tf.float32
        exact, stored, labels = _BLOCKS
        # powers of two, so that one number of rows a chunk suits all
        self._block_rows, self._kernel_block_rows, self._label_block_rows = (
            min(most, 2 ** max(0, (block // self.num_clusters).bit_length() - 1))
            for block, most in ((_LINEAR_BLOCK, stored, _LINEAR_BLOCK) if self.is_linear else (exact, stored, labels))
        )
        entries = self.num_rows * self.num_clusters
        if entries <= _ENTRIES_TO_SHARE:
            # one chunk of eight sizes an octave, the rest of it padded, so that XLA compiles for few shapes
            blocks = -(-self.num_rows // self._block_rows)
            step = max(1, 2 ** (blocks.bit_length() - 4))
            self._chunk_rows = -(-blocks // step) * step * self._block_rows
        else:
            count = 2 * -(-entries // (2 * _CHUNK_ENTRIES))
            self._chunk_rows = -(-self.num_rows // (count * self._block_rows)) * self._block_rows
        # the last chunk overlaps the one before rather than be padded, which would copy it: it does not count those rows
        last = max(0, self.num_rows - self._chunk_rows)
        self._starts = [*range(0, last, self._chunk_rows), last]
        if tf.config.list_logical_devices("GPU"):
            self._block_rows = self._kernel_block_rows = self._label_block_rows = self._chunk_rows

    def measure(self, potentials: np.ndarray) -> Measurement:
        """One exact pass.

        Raises:
            ValueError: a row has NaN or +inf, or a row or column nothing but -inf; it names the first.
        """
        lam, v = tf.constant(self.lam, self.dtype), tf.constant(potentials, self.dtype)

        def one(chunk: _Chunk) -> tuple[np.ndarray, np.ndarray]:
            mass, log_rows = passes.measure(chunk.rows, chunk.weights, chunk.num_rows, lam, v, self._block_rows)
            return mass.numpy(), log_rows.numpy()[chunk.new]

        masses, per_row = zip(*self._map(one), strict=True)
        log_rows = np.concatenate(per_row)
        if not np.isfinite(log_rows).all():
            raise ValueError(self._complaint(np.flatnonzero(~np.isfinite(log_rows))))
        if self.dtype == tf.float32 and max(np.abs(log_rows).max(), np.ptp(potentials)) > _FLOAT32_RANGE:
            self.dtype = tf.float64
            return self.measure(potentials)
        mass = np.sum(masses, axis=0, dtype=np.float64)
        with np.errstate(divide="ignore"):
            log_mass = np.log(mass)
        if mass.min() < _SMALLEST_MASS:
            log_mass = self._log_mass(lam, v, log_rows)
            empty = np.flatnonzero(log_mass == -np.inf)
            if len(empty):
                raise ValueError(
                    "`log_probs` must have a finite value in every column. "
                    f"Received: column {empty[0]} is all -inf ({len(empty)} such)"
                )
        weighted = log_rows if self.counted is None else log_rows[self.counted]
        return Measurement(log_mass - np.log(self.num_counted), log_rows, float(weighted.mean(dtype=np.float64)))

    def _log_mass(self, lam: tf.Tensor, v: tf.Tensor, log_rows: np.ndarray) -> np.ndarray:
        """Log sum_i w_i softmax_i, float64 [K], however small."""

        def one(chunk: _Chunk) -> tuple[np.ndarray, np.ndarray]:
            highest, total = passes.log_mass(chunk.rows, chunk.weights, self._of(log_rows, chunk), lam, v, self._block_rows)
            return highest.numpy(), total.numpy()

        with np.errstate(divide="ignore"):
            # on one thread: it has sums that are not safe to share (passes.py)
            logs = [highest.astype(np.float64) + np.log(total) for highest, total in self._map(one, num_threads=1)]
        return np.logaddexp.reduce(logs, axis=0)

    def absorb(self, potentials: np.ndarray, log_rows: np.ndarray, storage: tf.DType) -> Kernel:
        """exp(s_i + potentials) / z_i, stored for passes that take no exponential. `log_rows`: as measured at `potentials`."""
        lam, v = tf.constant(self.lam, self.dtype), tf.constant(potentials, self.dtype)

        def one(chunk: _Chunk) -> tuple[tf.Tensor, tf.Tensor]:
            return passes.absorb(chunk.rows, chunk.weights, self._of(log_rows, chunk), lam, v, storage), chunk.num_rows

        return Kernel(self, potentials, self._map(one), self._kernel_block_rows)

    def labels(self, potentials: np.ndarray) -> np.ndarray:
        """argmax_k (s_ik + potentials_k), int64 [N]."""
        lam, v = tf.constant(self.lam, self.dtype), tf.constant(potentials, self.dtype)

        def one(chunk: _Chunk) -> np.ndarray:
            return passes.argmax(chunk.rows, chunk.num_rows, lam, v, self._label_block_rows).numpy()[chunk.new]

        return np.concatenate(self._map(one))

    def scores(self, rows: slice | np.ndarray) -> np.ndarray:
        """Scores [n, K] of some rows, in NumPy."""
        dtype = self.dtype.as_numpy_dtype
        some = _as_array(self._table[rows] if isinstance(rows, slice) else _take(self._table, rows))
        if self.is_linear:
            some = _as_array(float32_tensor(some) @ self._parameters[0] + self._parameters[1])
        return np.multiply(some, dtype(self.lam), dtype=dtype)

    def sample(self, share: int) -> Rows:
        """Every `share`-th of the rows, copied."""
        some = np.arange(share // 2, self.num_rows, share)
        table = _take(self._table, some)
        counted = None if self.counted is None else self.counted[some]
        source = LinearLogits(table, *self._parameters) if self.is_linear else table
        return Rows(source, lam=self.lam, counted=counted, num_threads=self.num_threads)

    def at(self, lam: float) -> Rows:
        """The same rows under another lam."""
        other = copy.copy(self)
        other.lam = lam
        return other

    def seconds_of_a_pass(self) -> float:
        """An estimate, from one chunk."""
        zeros = tf.zeros([self.num_clusters])
        for _ in range(2):  # the first call compiles
            chunk, start = self._chunk(0), time.perf_counter()
            passes.measure(chunk.rows, chunk.weights, chunk.num_rows, tf.constant(self.lam), zeros, self._block_rows)[0].numpy()
        return (time.perf_counter() - start) * len(self._starts) / min(self.num_threads, len(self._starts))

    def map_slices(self, function: Callable[[slice], _Result]) -> list[_Result]:
        """`function` of consecutive slices of the rows, in order, shared between threads."""
        rows = max(1, _SLICE_ENTRIES // self.num_clusters)
        slices = [slice(start, min(start + rows, self.num_rows)) for start in range(0, self.num_rows, rows)]
        return _share(function, slices, self.num_threads)

    def _map(self, function: Callable[[_Chunk], _Result], num_threads: int | None = None) -> list[_Result]:
        return _share(lambda start: function(self._chunk(start)), self._starts, num_threads or self.num_threads)

    def _chunk(self, start: int) -> _Chunk:
        stop = min(start + self._chunk_rows, self.num_rows)
        missing = self._chunk_rows - (stop - start)
        table = tf.convert_to_tensor(self._table[start:stop])
        overlap = self._starts[-2] + self._chunk_rows - start if start == self._starts[-1] and start > 0 else 0
        weights = np.ones(self._chunk_rows, np.float32) if self.counted is None else np.zeros(self._chunk_rows, np.float32)
        if self.counted is not None:
            weights[: stop - start] = self.counted[start:stop]
        weights[:overlap] = 0
        weights[stop - start :] = 0
        return _Chunk(
            start,
            slice(overlap, stop - start),
            (tf.pad(table, [[0, missing], [0, 0]]) if missing else table, *self._parameters),
            tf.constant(weights),
            tf.constant(stop - start),
        )

    def _of(self, per_row: np.ndarray, chunk: _Chunk) -> tf.Tensor:
        """The part of a number per row that belongs to a chunk, padded as its rows are."""
        part = per_row[chunk.start : chunk.start + self._chunk_rows]
        return tf.constant(np.pad(part, (0, self._chunk_rows - len(part))), self.dtype)

    def _complaint(self, wrong_rows: np.ndarray) -> str:
        """What is wrong with the first of these rows, for the person who has to find it."""
        row = int(wrong_rows[0])
        values = np.asarray(self._table[row : row + 1])[0].astype(np.float64)
        name = "features" if self.is_linear else "log_probs"
        bad = np.flatnonzero(np.isnan(values) | (values == np.inf))
        if len(bad):
            return (
                f"`{name}` must hold neither NaN nor +inf. Received: {values[bad[0]]} at row {row}, column {bad[0]} "
                f"({len(wrong_rows)} of {self.num_rows} rows have one). Has training diverged? Lower the learning rate"
            )
        if (values == -np.inf).all():
            return (
                f"`{name}` must have a finite value in every row. Received: row {row} is all -inf ({len(wrong_rows)} such rows: "
                f"{', '.join(map(str, wrong_rows[:5]))}{'…' if len(wrong_rows) > 5 else ''})"
            )
        return (
            f"`{name}` times `lam` overflows float32: scale the logits down. Received: largest magnitude "
            f"{np.abs(values).max():g} in row {row}"
        )


class Kernel:
    """Rows as they were absorbed at some potentials; a pass takes a multiplication and an addition for each of two sums."""

    def __init__(self, rows: Rows, absorbed: np.ndarray, chunks: list[tuple[tf.Tensor, tf.Tensor]], block_rows: int):
        self.absorbed = absorbed
        self._num_counted, self._num_threads = rows.num_counted, rows.num_threads
        self._chunks, self._block_rows = chunks, block_rows

    def measure(self, potentials: np.ndarray) -> tuple[np.ndarray, float]:
        """(m [K] float64, mean change of the rows' log-sum-exp since they were absorbed)."""
        moved = potentials - self.absorbed
        centre = 0.5 * (moved.max() + moved.min())
        scaling = tf.constant(np.exp(moved - centre), tf.float32)

        def one(chunk: tuple[tf.Tensor, tf.Tensor]) -> tuple[np.ndarray, np.float32]:
            mass, change = passes.kernel_mass(*chunk, scaling, self._block_rows)
            return mass.numpy(), change.numpy()

        masses, changes = zip(*_share(one, self._chunks, self._num_threads), strict=True)
        mass = np.sum(masses, axis=0, dtype=np.float64) * scaling.numpy()
        return mass / self._num_counted, float(np.sum(changes, dtype=np.float64)) / self._num_counted + centre


def _as_array(values: Any) -> np.ndarray:
    """As NumPy sees it, where possible without a copy."""
    if tf.is_tensor(values) and values.dtype != tf.bfloat16 and "CPU" in values.device:
        return np.asarray(memoryview(values))
    return np.asarray(values)


def _take(table: Any, rows: np.ndarray) -> Any:
    return tf.gather(table, rows) if tf.is_tensor(table) else np.asarray(table[rows])


@functools.cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="sinkhorn")


def _share(function: Callable[[Any], _Result], items: Sequence[Any], num_threads: int) -> list[_Result]:
    """XLA on a CPU runs a loop on one thread, and lets go of Python's lock meanwhile: threads take a chunk each."""
    if num_threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    return list(_threads(num_threads).map(function, items))
