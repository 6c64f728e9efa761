"""Vectors that may lie in a file larger than memory, less their mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK_ENTRIES = 2**22
"""The numbers that are worked on at once."""
# The centred copy may take this many bytes.
_MOST_COPIED = 2**28


def moments(X: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the mean of the rows, float64 [D], and the mean variance of the features."""
    count = max(1, BLOCK_ENTRIES // X.shape[1])
    parts = [X[start : start + count] for start in range(0, len(X), count)]
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in parts) / len(X)
    squares = sum(float(((part - mean) ** 2).sum()) for part in parts)
    return mean, squares / X.size


class Vectors:
    """The rows of X less their mean, so that float32 keeps its digits; those of a large X are made a block at a time.

    Args:
        values: X, [N, D].
        mean: float64 [D].
    """

    def __init__(self, values: np.ndarray, mean: np.ndarray):
        self.shape, self.dtype = values.shape, values.dtype
        self._values, self._mean = values, mean
        if values.nbytes <= _MOST_COPIED:
            self._values, self._mean = (values - mean).astype(values.dtype), np.zeros(0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray | Vectors:
        some = self._values[rows]
        if not len(self._mean):
            return some
        if isinstance(rows, slice) and rows.step is not None:
            return Vectors(some, self._mean)
        return (some - self._mean).astype(self._values.dtype)

    def blocks(self, width: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields consecutive slices of the rows and their vectors, so many that rows of `width` numbers make a block."""
        count = max(1, BLOCK_ENTRIES // max(width, self.shape[1]))
        for start in range(0, len(self), count):
            rows = slice(start, start + count)
            yield rows, np.asarray(self[rows])
