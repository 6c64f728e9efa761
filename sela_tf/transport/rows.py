"""N rows of scores in chunks: `Rows`, whose passes return sums of K numbers over all rows.

All chunks of a solve have one shape, so that XLA compiles once. Chunks are shared between threads, and their sums are added up in the
order of the chunks, so that the result does not depend on the number of threads. The rows may lie in a tensor, in a file larger than
memory, or be computed from features. Several workers may have a share of the rows each (shards.py): sums are then those over all of them.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from sela_tf.transport import passes
from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.measurement import Measurement, Near
from sela_tf.transport.placement import Placement
from sela_tf.transport.shards import ALONE, Shards
from sela_tf.transport.stored_rows import StoredRows
from sela_tf.transport.table import Table, as_array
from sela_tf.transport.threads import map_in_threads, one_blas_thread

# Below this many entries a second thread costs more than it saves.
_ENTRIES_TO_SHARE = 2**20
# The largest numbers of entries and of rows in a block, which is to stay in the cache: in an exact pass, in a stored pass, and for labels.
# In larger blocks of the first two kinds XLA would call YNNPACK for sums and maxima, which threads cannot share (passes.py).
_EXACT_BLOCK, _STORED_BLOCK, _LABEL_BLOCK = (2**15, 128), (2**12, 16), (2**11, 16)
# Column sums below this, for each row that counts, are too small for an exact pass (passes.py), which takes far entries for nearer ones.
_SMALLEST_MASS = 1e-29
# Beyond such potentials or row sums, float32 no longer resolves a score to 1e-3.
_FLOAT32_RANGE = 4000.0

_Result = TypeVar("_Result")


class _Chunk(NamedTuple):
    """The rows of one call of a compiled pass."""

    start: int
    """The index of the first row."""
    new: slice
    """The rows, counted from `start`, that no earlier chunk has."""
    rows: passes.ChunkRows
    """The place of the rows."""
    weights: tf.Tensor
    """The weights of the rows in sums, float32 [n]: 1, or 0 for rows that do not count, overlap or padding."""
    num_rows: tf.Tensor
    """The number of rows that are not padding, int32."""


class Rows:
    """N rows of scores s_i = lam * log p_i, in chunks.

    Args:
        source: log-probabilities or logits [N, K], a tensor or anything that slices to an array; or `LinearLogits`; or a `Table` of these.
        lam: the factor between log-probabilities and scores.
        counted: bool [N], False where a row is left out of the sums; None to count all.
        num_threads: the number of threads that chunks are shared between; None for as many as there are processors, or graphics cards.
        shards: the workers that have a share of the rows each, of which `source` is this one's.
        placement: the devices; None for those that are there, or those of the table.

    Attributes:
        is_computed: True where every pass computes the rows from features.
        num_rows: the number of rows here.
        num_all: the number of rows of all workers.
        num_most: the largest number of rows that a worker has.
        num_counted: the number of rows that count, of all workers.
    """

    def __init__(
        self,
        source: Any,
        *,
        lam: float,
        counted: np.ndarray | None = None,
        num_threads: int | None = None,
        shards: Shards = ALONE,
        placement: Placement | None = None,
    ):
        self.lam, self.counted, self.shards = lam, counted, shards
        self._table = source if isinstance(source, Table) else Table(source, placement=placement)
        self.placement = self._table.placement
        self.is_computed, self.num_rows, self.num_clusters = self._table.is_computed, self._table.num_rows, self._table.num_clusters
        self.bytes_per_row = self._table.bytes_per_row
        num_counted = self.num_rows if counted is None else int(counted.sum())
        numbers, of_counted = shards.of_each(np.array([self.num_rows, num_counted])).T
        self.num_all, self.num_most, self.num_counted = int(numbers.sum()), int(numbers.max()), int(of_counted.sum())
        self.num_threads = num_threads or self.placement.num_threads
        self.dtype = tf.float32
        # The numbers of rows in a block are powers of two, so that one number of rows in a chunk is a multiple of all three.
        self._exact_block_rows, self._stored_block_rows, self._label_block_rows = (
            min(most, 2 ** max(0, (entries // self.num_clusters).bit_length() - 1))
            for entries, most in (_EXACT_BLOCK, _STORED_BLOCK, _LABEL_BLOCK)
        )
        entries = self.num_rows * self.num_clusters
        if entries <= _ENTRIES_TO_SHARE:
            # A single chunk is padded to one of eight sizes an octave, so that XLA compiles for few shapes.
            blocks = -(-self.num_rows // self._exact_block_rows)
            unit = max(1, 2 ** (blocks.bit_length() - 4))
            self._chunk_rows = -(-blocks // unit) * unit * self._exact_block_rows
        else:
            parts = self.placement.num_parts
            count = parts * -(-entries // (parts * self.placement.chunk_entries))
            self._chunk_rows = -(-self.num_rows // (count * self._exact_block_rows)) * self._exact_block_rows
        # The last chunk overlaps the one before, whose rows it does not count: padding would copy it.
        last = max(0, self.num_rows - self._chunk_rows)
        self._starts = [*range(0, last, self._chunk_rows), last]
        if self.placement.on_cards:  # A graphics card works on a whole chunk at once.
            self._exact_block_rows = self._stored_block_rows = self._label_block_rows = self._chunk_rows

    def measure(self, potentials: np.ndarray) -> Measurement:
        """Makes an exact pass at `potentials`, float64 [K]; goes on in float64 from where float32 is too coarse.

        Raises:
            ValueError: a row has NaN or +inf, or a row or column is all -inf. The message names the first.
        """
        return self._measure(potentials, lambda chunk, log_rows, *kept: None)[0]

    def measure_and_list(self, potentials: np.ndarray, cutoff: float) -> tuple[Measurement, list[Near]]:
        """Makes an exact pass as `measure`, and lists the entries at most `cutoff` below the log-sum-exp of their row, of rows that count."""

        def list_chunk(chunk: _Chunk, log_rows: np.ndarray, is_near: tf.Tensor) -> Near:
            found = np.flatnonzero(as_array(is_near))
            ends = np.searchsorted(found, np.arange(len(log_rows) + 1) * self.num_clusters)
            counts = np.diff(ends)
            columns = found - np.repeat(np.arange(len(log_rows)) * self.num_clusters, counts)
            table, part = chunk.rows.table, slice(int(chunk.rows.start), int(chunk.rows.start) + len(log_rows))
            entries = as_array(table[part]) if table.dtype == tf.bfloat16 else as_array(table)[part]
            scores = entries.ravel()[found].astype(np.float64) * self.lam - np.repeat(log_rows, counts)
            return Near(counts[counts > 0], columns, scores)

        return self._measure(potentials, list_chunk, "near", cutoff)

    def measure_and_store(self, potentials: np.ndarray, storage: tf.DType) -> tuple[Measurement, StoredRows]:
        """Makes an exact pass as `measure`, and stores the rows as `absorb` does."""
        measured, chunks = self._measure(potentials, lambda chunk, log_rows, stored: (stored, chunk.num_rows), storage.name)
        return measured, self._as_stored(chunks, potentials)

    def measure_and_label(self, potentials: np.ndarray) -> tuple[Measurement, np.ndarray]:
        """Makes an exact pass as `measure`; returns also the labels of all rows, as `labels` does."""
        measured, labels = self._measure(potentials, lambda chunk, log_rows, labels: labels.numpy()[chunk.new], "labels")
        return measured, np.concatenate(labels)

    def _measure(
        self, potentials: np.ndarray, look: Callable[..., _Result], keep: str = "", cutoff: float = 0.0
    ) -> tuple[Measurement, list[_Result]]:
        """Makes an exact pass; returns also what `look` makes of each chunk, the log-sum-exp of its rows, and what the pass kept."""
        lam, v, distance = (tf.constant(each, self.dtype) for each in (self.lam, potentials, cutoff))

        def measure_chunk(chunk: _Chunk) -> tuple[np.ndarray, np.ndarray, _Result]:
            arguments = (chunk.rows, chunk.weights, chunk.num_rows, lam, v, distance, self._exact_block_rows, keep)
            mass, log_rows, *kept = passes.measure(*arguments)
            return mass.numpy(), log_rows.numpy()[chunk.new], look(chunk, log_rows.numpy(), *kept)

        masses, per_row, looks = zip(*self._map_chunks(measure_chunk), strict=True)
        log_rows = np.concatenate(per_row)
        wrong = np.flatnonzero(~np.isfinite(log_rows))
        is_coarse = max(np.abs(log_rows).max(), np.ptp(potentials)) > _FLOAT32_RANGE
        own_mass, own_sum = np.sum(masses, axis=0, dtype=np.float64), self.that_count(log_rows).sum(dtype=np.float64)
        mass, sum_log_rows, num_wrong, num_coarse = self.shards.total(own_mass, own_sum, len(wrong), is_coarse)
        if num_wrong:
            self.shards.raise_any(self._table.describe_bad(wrong) if len(wrong) else "")
        if self.dtype == tf.float32 and num_coarse:
            self.dtype = tf.float64
            return self._measure(potentials, look, keep, cutoff)
        with np.errstate(divide="ignore"):
            log_mass = np.log(mass)
        if mass.min() < _SMALLEST_MASS * self.num_counted:
            log_mass = self._log_mass(lam, v, log_rows)
            empty = np.flatnonzero(log_mass == -np.inf)
            if len(empty):
                raise NotFiniteError(
                    "`log_probs` must have a finite value in every column. "
                    f"Received: column {empty[0]} is all -inf ({len(empty)} such)"
                )
        measured = Measurement(log_mass - np.log(self.num_counted), log_rows, float(sum_log_rows) / self.num_counted)
        return measured, list(looks)

    def _log_mass(self, lam: tf.Tensor, v: tf.Tensor, log_rows: np.ndarray) -> np.ndarray:
        """Returns log sum_i w_i softmax_i, float64 [K], also where the sum itself underflows.

        `log_rows` [N] are as measured at the potentials `v`.
        """

        def sum_chunk(chunk: _Chunk) -> tuple[np.ndarray, np.ndarray]:
            log_row = self._part_of_chunk(log_rows, chunk)
            highest, total = passes.log_mass(chunk.rows, chunk.weights, log_row, lam, v, self._exact_block_rows)
            return highest.numpy(), total.numpy()

        with np.errstate(divide="ignore"):
            # This pass has sums that threads cannot share (passes.py).
            logs = [highest.astype(np.float64) + np.log(total) for highest, total in self._map_chunks(sum_chunk, num_threads=1)]
        return np.logaddexp.reduce(self.shards.joined(np.stack(logs))[0], axis=0)

    def absorb(self, potentials: np.ndarray, log_rows: np.ndarray, storage: tf.DType) -> StoredRows:
        """Stores exp(s_i + v0) / z_i for passes that take no exponential.

        Args:
            potentials: v0, float64 [K].
            log_rows: log z_i, float [N], as measured at `potentials`.
            storage: the dtype that is stored, float16 or float32.
        """
        lam, v = tf.constant(self.lam, self.dtype), tf.constant(potentials, self.dtype)

        def absorb_chunk(chunk: _Chunk) -> tuple[tf.Tensor, tf.Tensor]:
            arguments = (chunk.rows, chunk.weights, self._part_of_chunk(log_rows, chunk), lam, v, self._exact_block_rows, storage)
            return passes.absorb(*arguments), chunk.num_rows

        return self._as_stored(self._map_chunks(absorb_chunk), potentials)

    def _as_stored(self, chunks: list[tuple[tf.Tensor, tf.Tensor]], potentials: np.ndarray) -> StoredRows:
        """Returns stored chunks, made at `potentials`, as rows."""
        return StoredRows(
            chunks,
            potentials,
            self._stored_block_rows,
            num_counted=self.num_counted,
            num_threads=self.num_threads,
            shards=self.shards,
            placement=self.placement,
        )

    def that_count(self, per_row: np.ndarray) -> np.ndarray:
        """Returns the values of the rows that count."""
        return per_row if self.counted is None else per_row[self.counted]

    def labels(self, potentials: np.ndarray) -> np.ndarray:
        """Returns the labels of all rows, argmax_k (s_ik + potentials_k), int64 [N]."""
        lam, v = tf.constant(self.lam, self.dtype), tf.constant(potentials, self.dtype)

        def label_chunk(chunk: _Chunk) -> np.ndarray:
            return passes.argmax(chunk.rows, chunk.weights, chunk.num_rows, lam, v, self._label_block_rows).numpy()[chunk.new]

        return np.concatenate(self._map_chunks(label_chunk))

    def near_tops(
        self, u: np.ndarray, cutoff: float, is_free: np.ndarray, most_per_row: float
    ) -> list[tuple[slice, tuple[np.ndarray, np.ndarray, np.ndarray, float] | None]]:
        """Finds the entries near the top of their row, for rows on graphics cards.

        Args:
            u: float32 or float64 [K], what is added to the log-probabilities.
            cutoff: the distance from the row's largest sum up to which an entry is near.
            is_free: bool [N], the rows that are looked at.
            most_per_row: the largest number of near entries a row, on average over a chunk.

        Returns:
            for each chunk its rows, and of the entries that are near the row, counted from the chunk's first, the column and the
            log-probability, float64; and the largest magnitude of a largest sum. None instead where there are too many of them, or a sum is
            not finite.
        """
        potentials, distance = tf.constant(u), tf.constant(cutoff, u.dtype)

        def look_at(chunk: _Chunk) -> tuple[slice, tuple[np.ndarray, np.ndarray, np.ndarray, float] | None]:
            rows = slice(chunk.start + chunk.new.start, chunk.start + chunk.new.stop)
            counts = np.zeros(self._chunk_rows, bool)
            counts[chunk.new] = is_free[rows]
            table = chunk.rows.table
            near, largest, is_finite = passes.near_top(table, potentials, distance, tf.constant(counts))
            most = most_per_row * (rows.stop - rows.start)
            if not is_finite or tf.math.count_nonzero(near).numpy() > most:
                return rows, None
            index = tf.where(near)
            values = tf.gather_nd(table, index).numpy().astype(np.float64)
            row, column = index.numpy().T
            return rows, (row - chunk.new.start, column, values, float(largest))

        return self._map_chunks(look_at)

    def scores(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns the scores of some rows, a slice or indices, as a NumPy array [n, K], float32 or float64 as the passes."""
        dtype = self.dtype.as_numpy_dtype
        return np.multiply(self._table.rows(rows), dtype(self.lam), dtype=dtype)

    def sample(self, number: int) -> Rows:
        """Returns so many rows of those of all workers, spread evenly and copied; all rows if there are no more."""
        if number >= self.num_all:
            return self
        own = max(1, number * self.num_rows // self.num_all)
        some = np.linspace(0, self.num_rows - 1, own).astype(np.int64)
        counted = None if self.counted is None else self.counted[some]
        return Rows(
            self._table.sample(some),
            lam=self.lam,
            counted=counted,
            num_threads=self.num_threads,
            shards=self.shards,
            placement=self.placement,
        )

    def with_lam(self, lam: float) -> Rows:
        """Returns the same rows with another lam; nothing is copied."""
        other = copy.copy(self)
        other.lam = lam
        return other

    def estimate_pass_seconds(self) -> float:
        """Estimates the seconds that an exact pass takes, from one chunk."""
        zeros = tf.zeros([self.num_clusters])
        for _ in range(2):  # The first call compiles.
            start = time.perf_counter()
            with self.placement.scope(0), self._table.chunk(0, self._chunk_rows) as rows:
                chunk, numbers = self._chunk(0, rows), (tf.constant(self.lam), zeros, tf.zeros([]))
                passes.measure(chunk.rows, chunk.weights, chunk.num_rows, *numbers, self._exact_block_rows, "")[0].numpy()
        return (time.perf_counter() - start) * len(self._starts) / min(self.num_threads, len(self._starts))

    def _map_chunks(self, function: Callable[[_Chunk], _Result], num_threads: int | None = None) -> list[_Result]:
        """Returns the results of `function` for all chunks, in their order; threads share the chunks."""

        def of_chunk(number: int) -> _Result:
            start = self._starts[number]
            with self.placement.scope(number), self._table.chunk(start, self._chunk_rows) as rows:
                return function(self._chunk(start, rows))

        with one_blas_thread() if self.is_computed else contextlib.nullcontext():
            return map_in_threads(of_chunk, range(len(self._starts)), num_threads or self.num_threads)

    def _chunk(self, start: int, rows: passes.ChunkRows) -> _Chunk:
        """Makes the chunk whose first row is `start`."""
        number = min(self._chunk_rows, self.num_rows - start)
        overlap = self._starts[-2] + self._chunk_rows - start if start == self._starts[-1] and start > 0 else 0
        weights = np.zeros(self._chunk_rows, np.float32)
        weights[:number] = 1.0 if self.counted is None else self.counted[start : start + number]
        weights[:overlap] = 0
        return _Chunk(start, slice(overlap, number), rows, tf.constant(weights), tf.constant(number))

    def _part_of_chunk(self, per_row: np.ndarray, chunk: _Chunk) -> tf.Tensor:
        """Returns the part of an array [N] that belongs to a chunk, [n], padded as the chunk's rows are."""
        part = per_row[chunk.start : chunk.start + self._chunk_rows]
        return tf.constant(np.pad(part, (0, self._chunk_rows - len(part))), self.dtype)
