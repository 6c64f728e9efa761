"""The candidates of each row: `Candidates`, the few clusters near the top of each row at some potentials, and what follows from them at others.

With lists of candidates, masses, the dual and labels at other potentials take a few numbers a row. They are those of all entries as long as
no entry that is not listed can matter: `missing` bounds what these weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from sela_tf.transport.measurement import Measurement, Near
from sela_tf.transport.shards import ALONE, Shards

MAX_PER_ROW = 96
"""The most candidates a row, on average."""
BYTES_PER_CANDIDATE = 96
"""The bytes that a candidate takes at the peak of a solve: score, column and row, two evaluations, and the Hessian's triples."""
BYTES_PER_ROW = 48
"""The bytes that a list takes beyond its candidates: where it starts, and sums over the row."""
# Up to this drift no exponential can overflow, so that the maximum of each row need not be found.
_SAFE_DRIFT = 500.0
# The best candidate of a row has at least this share of its listed entries.
_SMALLEST_BEST = 1 / (2 * MAX_PER_ROW)
# Up to this number of clusters workers add up whole matrices, in one message instead of two.
_DENSE = 256
# The Hessian leaves out smaller weights.
_NEGLIGIBLE = 1e-6


class Evaluation(NamedTuple):
    """The plan on the candidates at some potentials, as if there were no other entries."""

    q: np.ndarray
    """The candidates' shares of their rows, float64 [E]."""
    mass: np.ndarray
    """The clusters' masses, float64 [K], over the rows of all workers."""
    rises: np.ndarray
    """The rise of the log-sum-exp of each row since the lists were made, float64 [R]."""
    mean_rise: float
    """The mean of the rises, over the rows of all workers."""


class Missing(NamedTuple):
    """Bounds of what the entries that are not listed weigh, as a share of their row."""

    worst: float
    """The largest share in any row."""
    mean: float
    """The mean over the rows."""


class Candidates:
    """The candidates of the R rows that count, made at the potentials v0. Several workers may have a share of the rows each.

    Args:
        near: the candidates, as a pass at v0 listed them.
        log_rows: what this pass measured, the log-sum-exp of the rows that count, float [R].
        potentials: v0, float64 [K].
        cutoff: the distance below the log-sum-exp of its row up to which an entry is a candidate.
        shards: the workers.
    """

    def __init__(self, near: Sequence[Near], log_rows: np.ndarray, potentials: np.ndarray, cutoff: float, shards: Shards = ALONE):
        self.potentials, self.cutoff, self._log_rows, self.shards = potentials, cutoff, log_rows, shards
        counts = np.concatenate([each.counts for each in near])
        self._columns = np.concatenate([each.columns for each in near])
        # scores less the log-sum-exp of their row at v0
        self._scores = np.concatenate([each.scores for each in near])
        self._starts = np.cumsum(counts) - counts
        self._row = np.repeat(np.arange(len(counts)), counts)
        num_all, sum_log_rows = shards.total(len(counts), log_rows.sum(dtype=np.float64))
        self._num_all, self._mean_log_row = int(num_all), float(sum_log_rows) / max(1, int(num_all))

    def evaluate(self, v: np.ndarray) -> Evaluation:
        """Computes the plan at the potentials v, float64 [K]."""
        shifted = self._scores + v[self._columns]
        highest = np.zeros(1)
        if np.ptp(v - self.potentials) > _SAFE_DRIFT:
            highest = np.maximum.reduceat(shifted, self._starts)
            shifted -= highest[self._row]
        q = np.exp(shifted, out=shifted)
        row_sum = np.add.reduceat(q, self._starts)
        q /= row_sum[self._row]
        rises = highest + np.log(row_sum)
        mass, sum_rises = self.shards.total(np.bincount(self._columns, q, len(v)), rises.sum())
        return Evaluation(q, mass / self._num_all, rises, float(sum_rises) / self._num_all)

    def missing(self, v: np.ndarray, at: Evaluation) -> Missing:
        """Returns bounds of what the entries that are not listed weigh at the potentials v, at which the plan is `at`."""
        # An entry that is not listed was below exp(-cutoff) of its row, and has risen by no more than the most of any potential.
        distances = self.cutoff - (v - self.potentials).max() + at.rises
        with np.errstate(over="ignore"):
            weights = len(v) * np.exp(-distances)
        worst, total = self.shards.of_each(np.array([weights.max(initial=0.0), weights.sum()])).T
        return Missing(float(worst.max()), float(total.sum()) / self._num_all)

    def measured(self, at: Evaluation) -> Measurement:
        """Returns what an exact pass would measure, without the log-sum-exp of the rows."""
        with np.errstate(divide="ignore"):
            return Measurement(np.log(at.mass), np.zeros(0), self._mean_log_row + at.mean_rise)

    def labels(self, v: np.ndarray, log_rows: np.ndarray | None = None) -> np.ndarray:
        """Returns the best candidate of each row at the potentials v, int64 [R]; the first of equal ones.

        Args:
            v: float64 [K].
            log_rows: what an exact pass measured at v, the log-sum-exp of the rows that count, float [R]. The label of a row is then -1
                where an entry that is not listed might be better.
        """
        shifted = self._scores + v[self._columns]
        is_best = shifted == np.maximum.reduceat(shifted, self._starts)[self._row]
        labels = np.empty(len(self._starts), np.int64)
        best = np.flatnonzero(is_best)[::-1]
        labels[self._row[best]] = self._columns[best]
        if log_rows is not None:
            missing = log_rows.astype(np.float64) - self._log_rows - self.evaluate(v).rises
            labels[missing > _SMALLEST_BEST] = -1
        return labels

    def joins(self, q: np.ndarray, num_clusters: int) -> csr_matrix:
        """Returns the mean over the rows of q_i q_i^T, [K, K], without its diagonal and without rows that are all but certain."""
        some = np.flatnonzero((q > _NEGLIGIBLE) & (q < 1 - _NEGLIGIBLE))
        plan = csr_matrix((q[some], (self._row[some], self._columns[some])), shape=(len(self._starts), num_clusters))
        weights = (plan.T @ plan) / self._num_all
        if self.shards.count > 1 and num_clusters <= _DENSE:
            weights = csr_matrix(self.shards.total(weights.toarray())[0])
        elif self.shards.count > 1:
            own = weights.tocoo()
            values, rows, columns = self.shards.joined(own.data, own.row, own.col)
            weights = csr_matrix((values, (rows, columns)), shape=weights.shape)
        weights.setdiag(0)
        return weights
