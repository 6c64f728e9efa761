"""The N rows that a transport is about, `Table`, and how a chunk of them is brought to a compiled pass.

A tensor is read where it lies. Rows of an array or a file are copied, and rows of `LinearLogits` computed, into a buffer that TensorFlow
sees as a tensor: each thread uses a buffer over and over, so that no memory is asked for and given back for every chunk. On graphics cards
chunks are brought to their card once, and stay there where memory allows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from sela_tf.transport.errors import describe_bad_row
from sela_tf.transport.linear_logits import ComputedLogits, LinearLogits, float32_tensor, half_precision
from sela_tf.transport.passes import ChunkRows
from sela_tf.transport.placement import Placement, present
from sela_tf.transport.threads import full_float32

# TensorFlow reads memory of others in place where it begins at a multiple of this number of bytes.
_ALIGNMENT = 64
# NumPy hands memory of these numbers over; it has no bfloat16 of its own.
_BUFFERED = (np.float16, np.float32, np.float64)


class Table:
    """N rows of log-probabilities or logits, given or computed.

    Args:
        source: log-probabilities or logits [N, K], a tensor or anything that slices to an array; or `LinearLogits`.
        placement: the devices that chunks are brought to; None for those that are there.
        form: how logits are kept on graphics cards: "float32", "float16" (less the row's largest), or "computed" anew by every pass.
        keep_bytes: the bytes that chunks may take on all graphics cards together; None for no limit.

    Attributes:
        placement: the devices.
        is_computed: True where every pass computes the rows from features.
        num_rows: N.
        num_clusters: K.
        bytes_per_row: the bytes that a row takes as it is given.
    """

    def __init__(self, source: Any, *, placement: Placement | None = None, form: str = "computed", keep_bytes: float | None = None):
        self.placement = present() if placement is None else placement
        self._form, self._keep_bytes = form, np.inf if keep_bytes is None else keep_bytes
        self._kept: dict[tuple[int, int], tf.Tensor] = {}
        self._is_linear = isinstance(source, LinearLogits)
        self.is_computed = self._is_linear and not (self.placement.on_cards and form != "computed")
        self._given = source.features if self._is_linear else source
        self._head: tuple[tf.Tensor, ...] = (float32_tensor(source.kernel), float32_tensor(source.bias)) if self._is_linear else ()
        # The bias is the weight of one more feature, which is 1.
        self._weights = (
            np.concatenate([np.asarray(part).reshape(-1, part.shape[-1]) for part in self._head]) if self._head else np.zeros(0)
        )
        self.num_rows = int(self._given.shape[0])
        self.num_clusters = int((source.kernel if self._is_linear else source).shape[1])
        self._dtype = tf.float32 if self._is_linear else tf.as_dtype(source.dtype)
        self.bytes_per_row = as_array(self._given[:1]).nbytes
        self._buffers: list[_Buffer] = []
        self._uses_buffers = self._dtype.as_numpy_dtype in _BUFFERED and not self.placement.on_cards

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the rows as they are read."""
        return np.dtype(self._dtype.as_numpy_dtype)

    def on_host(self) -> np.ndarray | ComputedLogits:
        """Returns the rows as an array [N, K], or as one whose slices are computed."""
        return ComputedLogits(LinearLogits(self._given, *self._head)) if self._is_linear else as_array(self._given)

    @contextlib.contextmanager
    def chunk(self, start: int, num_rows: int) -> Iterator[ChunkRows]:
        """Provides `num_rows` rows from `start` on, followed by rows of zeros where there are no more, until the context is left."""
        stop = min(start + num_rows, self.num_rows)
        missing = num_rows - (stop - start)
        if self.placement.on_cards:
            yield ChunkRows(self._on_card(start, stop, missing), tf.constant(0))
        elif tf.is_tensor(self._given) and not self._is_linear and not missing:
            yield ChunkRows(self._given, tf.constant(start))
        elif self._uses_buffers:
            shape = (num_rows, self.num_clusters)
            buffer = self._buffers.pop() if self._buffers else _Buffer(shape, self._dtype.as_numpy_dtype)
            self._read(slice(start, stop), buffer.array[: stop - start])
            buffer.array[stop - start :] = 0
            yield ChunkRows(buffer.tensor, tf.constant(0))
            self._buffers.append(buffer)
        else:
            some = tf.convert_to_tensor(self._given[start:stop])
            if self._is_linear:
                some = self._logits(some)
            yield ChunkRows(tf.pad(some, [[0, missing], [0, 0]]), tf.constant(0))

    def _on_card(self, start: int, stop: int, missing: int) -> tf.Tensor:
        """Returns a chunk on the device whose scope this is, and keeps it there where memory allows it."""
        kept = self._kept.get((start, stop))
        if kept is None:
            # A slice of a tensor is made where the tensor lies, or all of it would be brought here.
            with tf.device(self._given.device) if tf.is_tensor(self._given) else contextlib.nullcontext():
                part = tf.convert_to_tensor(self._given[start:stop])
            kept = tf.identity(part)
            if self._is_linear and not self.is_computed:
                kept = half_precision(self._logits(kept)) if self._form == "float16" else self._logits(kept)
            kept = tf.pad(kept, [[0, missing], [0, 0]])
            # By its place, so that threads that bring chunks side by side choose alike.
            if stop * kept.shape[1] * kept.dtype.size <= self._keep_bytes:
                self._kept[start, stop] = kept
        return self._logits(kept) if self.is_computed else kept

    def _logits(self, features: tf.Tensor) -> tf.Tensor:
        """Returns the logits [n, K] of features [n, D], in full float32."""
        with full_float32():
            return float32_tensor(features) @ self._head[0] + self._head[1]

    def rows(self, some: slice | np.ndarray) -> np.ndarray:
        """Returns some rows, a slice or indices, as an array [n, K]."""
        given = self._given[some] if isinstance(some, slice) else take(self._given, some)
        if not self._is_linear:
            return as_array(given)
        return as_array(self._logits(given))

    def sample(self, some: np.ndarray) -> Any:
        """Returns a source of some rows, by index, copied."""
        given = take(self._given, some)
        if self._uses_buffers and not tf.is_tensor(given) and given.dtype in _BUFFERED:
            buffer = _Buffer(given.shape, given.dtype)
            buffer.array[:] = given
            given = buffer.tensor
        given = tf.convert_to_tensor(given)
        return LinearLogits(given, *self._head) if self._is_linear else given

    def describe_bad(self, wrong: np.ndarray) -> str:
        """Describes what is not finite in rows of these indices."""
        values = np.asarray(self._given[wrong[0] : wrong[0] + 1])[0].astype(np.float64)
        return describe_bad_row(values, wrong, self.num_rows, "features" if self._is_linear else "log_probs")

    def _read(self, rows: slice, out: np.ndarray) -> None:
        """Writes rows to `out` [n, K]."""
        if self._is_linear:
            features = np.ones((len(out), len(self._weights)), np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # The pass says what is wrong.
                features[:, :-1] = as_array(self._given[rows])
                np.matmul(features, self._weights, out=out)
        else:
            out[:] = as_array(self._given[rows])


class _Buffer:
    """Memory for a chunk of rows, as an array and as a tensor."""

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        size, item = shape[0] * shape[1], np.dtype(dtype).itemsize
        memory: np.ndarray = np.empty(size + _ALIGNMENT // item, dtype)
        first = -memory.ctypes.data % _ALIGNMENT // item
        self.array = memory[first : first + size].reshape(shape)
        self.tensor = tf.experimental.dlpack.from_dlpack(self.array.__dlpack__())


def as_array(values: Any) -> np.ndarray:
    """Returns values as a NumPy array, where possible without a copy."""
    is_viewable = tf.is_tensor(values) and values.dtype != tf.bfloat16 and "CPU" in values.device
    return np.asarray(memoryview(values)) if is_viewable else np.asarray(values)


def take(table: Any, rows: np.ndarray) -> Any:
    """Returns some rows of a table, by index: a tensor of a tensor, otherwise an array."""
    return tf.gather(table, rows) if tf.is_tensor(table) else np.asarray(table[rows])
