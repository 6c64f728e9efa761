"""Logits of a linear head, computed when they are needed: N x K numbers are never stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, overload

import numpy as np
import tensorflow as tf

_BLOCK_ROWS = 8192


class LinearLogits(NamedTuple):
    """Logits that are computed when they are needed: `features @ kernel + bias`, so that N x K numbers are never stored."""

    features: np.ndarray | tf.Tensor
    """[N, D]; anything that can be sliced, such as an np.memmap of a file larger than memory."""
    kernel: np.ndarray | tf.Tensor
    """[D, K]."""
    bias: np.ndarray | tf.Tensor
    """[K]."""

    def checked(self) -> LinearLogits:
        """Itself, with kernel and bias as float32 tensors.

        Raises:
            ValueError: shapes that do not belong together, no rows, or a kernel or bias that is not finite.
        """
        kernel, bias = float32_tensor(self.kernel), float32_tensor(self.bias)
        shape = tuple(self.features.shape)
        if len(shape) != 2 or 0 in shape or kernel.shape.rank != 2 or kernel.shape[0] != shape[1] or bias.shape != kernel.shape[1:]:
            raise ValueError(
                "`features` must be [N, D], `kernel` [D, K] and `bias` [K], none of them empty. "
                f"Received: {shape}, {tuple(kernel.shape)} and {tuple(bias.shape)}"
            )
        if not np.isfinite(kernel).all() or not np.isfinite(bias).all():
            raise ValueError(
                "`kernel` and `bias` must be finite. Received: NaN or infinity. Has training diverged? Lower the learning rate"
            )
        return self._replace(kernel=kernel, bias=bias)

    def blocks(self) -> Iterator[tuple[slice, tf.Tensor]]:
        """The logits float32 [n, K] of consecutive slices of the rows, computed as they are asked for."""
        kernel, bias = float32_tensor(self.kernel), float32_tensor(self.bias)
        for start in range(0, int(self.features.shape[0]), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            yield rows, tf.matmul(float32_tensor(self.features[rows]), kernel) + bias

    def log_probs(self) -> np.ndarray:
        """Log softmax, float32 [N, K], all of it in memory."""
        found = self._empty(np.float32)
        for rows, logits in self.blocks():
            found[rows] = tf.nn.log_softmax(logits)
        return found

    def half_precision(self) -> np.ndarray:
        """Logits less the largest of their row, float16 [N, K], in memory: as precise near the largest as float32 is around 1000."""
        found = self._empty(np.float16)
        for rows, logits in self.blocks():
            below = logits - tf.reduce_max(logits, axis=1, keepdims=True)
            # beyond the range of float16 lies -inf, which would forbid the cluster
            found[rows] = tf.cast(tf.maximum(below, float(np.finfo(np.float16).min)), tf.float16)
        return found

    def mean_log_probs(self, *labels: np.ndarray) -> list[float]:
        """The mean of log softmax at each of some labellings, integers [N]: less E(p, q) of the paper's eq. 3."""
        found = [np.empty(len(each), np.float32) for each in labels]
        for rows, logits in self.blocks():
            log_probs = tf.nn.log_softmax(logits).numpy()
            for values, each in zip(found, labels, strict=True):
                values[rows] = np.take_along_axis(log_probs, each[rows, np.newaxis], axis=1)[:, 0]
        return [float(values.mean(dtype=np.float64)) for values in found]

    def _empty(self, dtype: type) -> np.ndarray:
        return np.empty((int(self.features.shape[0]), int(self.kernel.shape[1])), dtype)


class ComputedLogits:
    """`LinearLogits` for those who read arrays: a slice of rows is computed when it is taken, in float32.

    A slice with a step is taken lazily again, until `astype` asks for its numbers.
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
        """All of it."""
        return self[0 : len(self)].astype(dtype)


def float32_tensor(values: Any) -> tf.Tensor:
    """As a tensor."""
    return tf.cast(tf.convert_to_tensor(values), tf.float32)
