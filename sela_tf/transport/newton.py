"""Newton's method on candidates: the accelerator for sharp rows, where Sinkhorn needs hundreds of passes.

At lam = 25 a row of a trained network has one or two clusters that it may go to. With q_i = softmax(s_i + v), the dual D(v) has the
gradient t - m and the Hessian -(diag(m) - mean_i q_i q_i^T): the Laplacian of a sparse graph on the clusters, in which j and k are
joined by mean_i q_ij q_ik, the rows that waver between them. So one pass collects for every row the entries within a reach of its
log-sum-exp; on these lists, a few numbers a row, Newton's method is run to the end (conjugate gradients on the Laplacian,
a ridge that shrinks with the error, steps halved until D rises). As long as potentials have moved by less than the reach no other
entry can matter. The next exact pass is the judge: the caller goes back to Sinkhorn where the dual did not rise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import cg

from sela_tf.transport.acceleration import within
from sela_tf.transport.rows import Rows

# Entries of a row, on average, that lists have at least; to reach far, they may have more, but not more of the row than this.
_CANDIDATES, _MOST_CANDIDATES, _MOST_OF_A_ROW = 5, 32, 1 / 32
# How far lists look if they can: farther lets potentials move farther in one round, which then takes longer. Lists that reach less far
# than the first are left before they have led anywhere.
_SHORTEST_REACH, _REACH = 40.0, 100.0
# Entries that were left out weigh less than exp(-_MARGIN) of their row wherever the potentials go.
_MARGIN = 12.0
_ROWS_TO_LOOK_AT = 512
BYTES_LISTED = 96
"""Bytes of an entry of the lists at the peak of a solve: score, column and row, with two evaluations and the Hessian's triples at once."""
# Potentials may move so far without a maximum of each row having to be found lest an exponential overflow.
_SAFE_ROOM = 500.0
# Scores that stay in the second-level cache while they are looked at.
_BLOCK_ENTRIES = 2**16
# Weights that a Hessian can do without.
_NEGLIGIBLE = 1e-6
_MAX_STEPS = 30
_RIDGE = 0.1
_SUFFICIENT = 1e-4


class Candidates(NamedTuple):
    """Entries of the rows that waver, as compressed rows; the others, of one candidate each, are only counted."""

    indptr: np.ndarray
    columns: np.ndarray
    scores: np.ndarray
    """float64, lam * log p less the row's log-sum-exp with the potentials that the lists were made at."""
    certain: np.ndarray
    """float64 [K], rows whose one candidate is k."""
    num_rows: int


def newton(
    rows: Rows,
    potentials: np.ndarray,
    log_rows: np.ndarray,
    target: np.ndarray,
    *,
    tolerance: float,
    most_listed: int | None = None,
) -> np.ndarray | None:
    """Potentials float64 [K] at which the lists' marginals are `target` within `tolerance`, or as far towards them as the lists
    reach; None where rows have too many candidates to be listed.

    Args:
        rows: N rows of scores.
        potentials: float64 [K].
        log_rows: [N], as measured at `potentials`.
        target: t [K].
        tolerance: L1 error of the marginals.
        most_listed: entries that lists may hold in all, about; None for as many as help.
    """
    reach = _reach(rows, potentials, log_rows, most_listed)
    if reach is None:
        return None
    return _solve(_collect(rows, potentials, log_rows, reach), potentials, target, reach - _MARGIN, tolerance)


def _reach(rows: Rows, potentials: np.ndarray, log_rows: np.ndarray, most_listed: int | None) -> float | None:
    """How far lists can look, judged by a few rows."""
    some = np.linspace(0, rows.num_rows - 1, min(rows.num_rows, _ROWS_TO_LOOK_AT)).astype(np.int64)
    distances = (log_rows[some, np.newaxis] - rows.scores(some) - potentials).ravel()
    distances = np.append(distances[np.isfinite(distances)], np.inf)
    most = max(_CANDIDATES, min(_MOST_CANDIDATES, int(rows.num_clusters * _MOST_OF_A_ROW)))
    room = most if most_listed is None else min(most, most_listed / rows.num_rows)
    ranks = [min(int(count * len(some)), len(distances) - 1) for count in (_CANDIDATES, room)]
    near, far = np.partition(distances, ranks)[ranks].tolist()
    reach = min(max(_REACH, near), far)
    return reach if reach >= _SHORTEST_REACH else None


def _collect(rows: Rows, potentials: np.ndarray, log_rows: np.ndarray, reach: float) -> Candidates:
    """One pass in NumPy."""

    def one(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        scores = rows.scores(part)
        entries = _above(scores, potentials.astype(scores.dtype), (log_rows[part] - reach).astype(scores.dtype))
        row, column = np.divmod(entries, rows.num_clusters)
        if rows.counted is not None:
            counted = rows.counted[part][row]
            row, column, entries = row[counted], column[counted], entries[counted]
        count = np.bincount(row, minlength=len(scores))
        wavers = (count > 1)[row]
        certain = np.bincount(column[~wavers], minlength=rows.num_clusters)
        listed = scores.ravel()[entries[wavers]] - log_rows[part].astype(np.float64)[row[wavers]]
        return count[count > 1], column[wavers], listed, certain

    counts, columns, scores, certain = zip(*rows.map_slices(one), strict=True)
    indptr = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    return Candidates(
        indptr, np.concatenate(columns), np.concatenate(scores), np.sum(certain, axis=0).astype(np.float64), rows.num_counted
    )


def _above(scores: np.ndarray, potentials: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Flat places of the entries with score + potential > least of its row, block by block in two buffers that stay in the cache."""
    num_rows, num_clusters = scores.shape
    block_rows = max(1, _BLOCK_ENTRIES // num_clusters)
    shifted, found = np.empty((block_rows, num_clusters), scores.dtype), np.empty((block_rows, num_clusters), bool)
    places = []
    for start in range(0, num_rows, block_rows):
        block = scores[start : start + block_rows]
        count = len(block)
        np.add(block, potentials, out=shifted[:count])
        np.greater(shifted[:count], least[start : start + count, np.newaxis], out=found[:count])
        places.append(np.flatnonzero(found[:count]) + start * num_clusters)
    return np.concatenate(places)


def _solve(lists: Candidates, start: np.ndarray, target: np.ndarray, room: float, tolerance: float) -> np.ndarray:
    """Newton's method from `start`, no potential moving by more than `room` against another."""
    indptr, columns, n = lists.indptr, lists.columns, lists.num_rows
    num_clusters = len(start)
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))

    def evaluate(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Q of the entries, t - m [K], and the dual up to a constant."""
        if not len(columns):
            return np.zeros(0), target - lists.certain / n, float((target - lists.certain / n) @ v)
        shifted, highest = lists.scores + v[columns], np.zeros(1)
        if not room < _SAFE_ROOM:
            highest = np.maximum.reduceat(shifted, indptr[:-1])
            shifted -= highest[row]
        q = np.exp(shifted, out=shifted)
        row_sum = np.add.reduceat(q, indptr[:-1])
        q /= row_sum[row]
        mass = (lists.certain + np.bincount(columns, q, num_clusters)) / n
        return q, target - mass, float((target - lists.certain / n) @ v - (highest + np.log(row_sum)).sum() / n)

    v = start
    q, gradient, dual = evaluate(v)
    for _ in range(_MAX_STEPS):
        error = np.abs(gradient).sum()
        if error <= tolerance:
            break
        # a row that is all but certain joins no clusters
        joins = np.flatnonzero((q > _NEGLIGIBLE) & (q < 1 - _NEGLIGIBLE))
        plan = csr_matrix((q[joins], (row[joins], columns[joins])), shape=(len(indptr) - 1, num_clusters))
        weights = (plan.T @ plan) / n
        weights.setdiag(0)
        degree = np.asarray(weights.sum(axis=1)).ravel() + (1e-5 + _RIDGE * error) * target
        step, _ = cg(diags_array(degree) - weights, gradient, rtol=1e-3, maxiter=2 * num_clusters, M=diags_array(1.0 / degree))
        step -= step @ target
        length = within(v - start, step, room)
        at_the_wall = length < 1
        while True:
            new = v + length * step
            new_q, new_gradient, new_dual = evaluate(new)
            if new_dual >= dual + _SUFFICIENT * length * (gradient @ step) or length < 1e-6:
                break
            length, at_the_wall = length / 2, False
        v, q, gradient, dual = new, new_q, new_gradient, new_dual
        if at_the_wall:
            break
    return v
