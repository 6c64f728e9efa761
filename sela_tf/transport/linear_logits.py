"""The logits of a linear head, computed from features where they are needed, so that N x K numbers need not be stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, overload

import numpy as np
import tensorflow as tf

from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.threads import full_float32

_BLOCK_ROWS = 8192


class LinearLogits(NamedTuple):
    """The logits [N, K] of a linear head, `features @ kernel + bias`, computed block by block where they are needed."""

    features: np.ndarray | tf.Tensor
    """The features [N, D]: an array, a tensor, or anything that can be sliced, such as an np.memmap of a file larger than memory."""
    kernel: np.ndarray | tf.Tensor
    """The weights of the head, [D, K]."""
    bias: np.ndarray | tf.Tensor
    """The bias of the head, [K]."""

    def checked(self) -> LinearLogits:
        """Returns the same logits, with kernel and bias as float32 tensors.

        Raises:
            ValueError: the shapes do not belong together, there are no rows, or the kernel or bias is not finite.
        """
        kernel, bias = float32_tensor(self.kernel), float32_tensor(self.bias)
        shape = tuple(self.features.shape)
        if len(shape) != 2 or 0 in shape or kernel.shape.rank != 2 or kernel.shape[0] != shape[1] or bias.shape != kernel.shape[1:]:
            raise ValueError(
                "`features` must be [N, D], `kernel` [D, K] and `bias` [K], none of them empty. "
                f"Received: {shape}, {tuple(kernel.shape)} and {tuple(bias.shape)}"
            )
        if not np.isfinite(kernel).all() or not np.isfinite(bias).all():
            raise NotFiniteError(
                "`kernel` and `bias` must be finite. Received: NaN or infinity. Has training diverged? Lower the learning rate"
            )
        return self._replace(kernel=kernel, bias=bias)

    def blocks(self) -> Iterator[tuple[slice, tf.Tensor]]:
        """Yields consecutive slices of the rows with their logits, float32 [n, K]."""
        kernel, bias = float32_tensor(self.kernel), float32_tensor(self.bias)
        for start in range(0, int(self.features.shape[0]), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            with full_float32():
                logits = tf.matmul(float32_tensor(self.features[rows]), kernel) + bias
            yield rows, logits

    def log_probs(self) -> np.ndarray:
        """Returns the log-probabilities, the log softmax of the logits, float32 [N, K]."""
        found = self._empty(np.float32)
        for rows, logits in self.blocks():
            found[rows] = tf.nn.log_softmax(logits)
        return found

    def half_precision(self) -> np.ndarray:
        """Returns the logits less the largest of their row, float16 [N, K].

        Near the largest they are as precise as float32 is around 1000. Values beyond the range of float16 become its lowest value.
        """
        found = self._empty(np.float16)
        for rows, logits in self.blocks():
            found[rows] = half_precision(logits)
        return found

    def sum_log_probs(self, *labels: np.ndarray) -> list[float]:
        """Returns the sum of the log-probabilities of each of several labellings, integers [N]: -N E(p, q) of the paper's eq. 3 (arXiv
        1911.05371)."""
        found = [np.empty(len(each), np.float32) for each in labels]
        for rows, logits in self.blocks():
            log_probs = tf.nn.log_softmax(logits).numpy()
            for values, each in zip(found, labels, strict=True):
                values[rows] = np.take_along_axis(log_probs, each[rows, np.newaxis], axis=1)[:, 0]
        return [float(values.sum(dtype=np.float64)) for values in found]

    def _empty(self, dtype: type) -> np.ndarray:
        """Returns an array [N, K] that is not filled."""
        return np.empty((int(self.features.shape[0]), int(self.kernel.shape[1])), dtype)


class ComputedLogits:
    """The logits of `LinearLogits` as an array [N, K] whose slices of rows are computed when they are taken, in float32.

    A slice with a step is itself computed only when `astype` is called.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, logits: LinearLogits):
        self._features, self._kernel, self._bias = logits.features, np.asarray(logits.kernel), np.asarray(logits.bias)
        self.shape = (int(logits.features.shape[0]), int(self._kernel.shape[1]))
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, rows: slice[int, int, None]) -> np.ndarray: ...
    @overload
    def __getitem__(self, rows: slice[None, None, int]) -> ComputedLogits: ...
    def __getitem__(self, rows: slice) -> np.ndarray | ComputedLogits:
        some = self._features[rows]
        if rows.step is not None:
            return ComputedLogits(LinearLogits(some, self._kernel, self._bias))
        return np.asarray(some, np.float32) @ self._kernel + self._bias

    def astype(self, dtype: type) -> np.ndarray:
        """Returns all logits, [N, K], as an array of `dtype`."""
        return self[0 : len(self)].astype(dtype)


def half_precision(logits: tf.Tensor) -> tf.Tensor:
    """Returns logits [n, K] less the largest of their row, float16; see `LinearLogits.half_precision`."""
    below = logits - tf.reduce_max(logits, axis=1, keepdims=True)
    # Without the bound they would become -inf, which forbids the cluster.
    return tf.cast(tf.maximum(below, float(np.finfo(np.float16).min)), tf.float16)


def float32_tensor(values: Any) -> tf.Tensor:
    """Returns values as a float32 tensor."""
    return tf.cast(tf.convert_to_tensor(values), tf.float32)
