"""Newton's method on candidate lists: `newton`, the accelerator for sharp rows, where Sinkhorn's iteration needs hundreds of passes.

With q_i = softmax(s_i + v), the dual D(v) has the gradient t - m and the Hessian -(diag(m) - mean_i q_i q_i^T). The Hessian is the
negative Laplacian of a graph on the clusters, in which j and k are joined with the weight mean_i q_ij q_ik. The graph is sparse where
rows are sharp: at lam = 25 a row of a trained network has one or two clusters that it may go to.

So one pass lists each row's candidates, the entries with q_ik > exp(-cutoff). Newton's method is run to its end on these lists, a
few numbers a row: conjugate gradients solve for the step, with a ridge that shrinks with the error, and a step is halved until D
rises. Entries that are not listed cannot matter until the potentials have moved by about the cutoff. The next exact pass is the judge:
the caller goes back to Sinkhorn's iteration where the dual did not rise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import cg

from sela_tf.transport.acceleration import part_within
from sela_tf.transport.rows import Rows
from sela_tf.transport.target import Target

# Lists have at least the first number of candidates a row, on average. For the usual cutoff they may have more: up to the second number,
# and up to the given share of the row.
_MIN_PER_ROW, _MAX_PER_ROW, _MAX_SHARE_OF_ROW = 5, 32, 1 / 32
# A larger cutoff lets potentials move farther before lists are made anew, but each step takes longer. Below the smallest cutoff lists
# would have to be made anew before they have led anywhere.
_MIN_CUTOFF, _USUAL_CUTOFF = 40.0, 100.0
# Potentials may drift by the cutoff less this margin: what is not listed then weighs less than exp(-12) of its row.
_MARGIN = 12.0
_ROWS_TO_LOOK_AT = 512
BYTES_PER_CANDIDATE = 96
"""The bytes that a candidate takes at the peak of a solve: score, column and row, two evaluations, and the Hessian's triples."""
# Up to this drift no exponential can overflow, so that the maximum of each row need not be found.
_SAFE_DRIFT = 500.0
# Scores of a block stay in the second-level cache while they are looked at.
_BLOCK_ENTRIES = 2**16
# The Hessian leaves out smaller weights.
_NEGLIGIBLE = 1e-6
_MAX_STEPS = 30
_RIDGE = 0.1
_SUFFICIENT_RISE = 1e-4


class CandidateLists(NamedTuple):
    """The candidates of the rows that have several, in compressed sparse row format; rows that have one are only counted."""

    indptr: np.ndarray
    """The start of each row's candidates, int64 [R + 1]."""
    columns: np.ndarray
    """The candidates' clusters, int64 [E]."""
    scores: np.ndarray
    """The candidates' scores lam * log p, less the row's log-sum-exp at the potentials that lists were made at, float64 [E]."""
    num_certain: np.ndarray
    """The number of rows whose only candidate is k, float64 [K]."""
    num_rows: int
    """The number of rows that count, with one candidate or several."""


def newton(
    rows: Rows,
    potentials: np.ndarray,
    log_rows: np.ndarray,
    target: Target,
    *,
    tolerance: float,
    max_candidates: int | None = None,
) -> np.ndarray | None:
    """Proposes potentials, float64 [K], at which the marginals of the candidate lists are those of `target`.

    Args:
        rows: the N rows of scores.
        potentials: float64 [K], where to start.
        log_rows: float [N], the rows' log-sum-exp as measured at `potentials`.
        target: the clusters' shares, or their bounds.
        tolerance: the L1 error of the lists' marginals at which to stop.
        max_candidates: about the most candidates that lists may hold in all; None for as many as help.

    Returns:
        The potentials, or those on the way to them where lists would have to be made anew; None where rows have too many
        candidates to be listed.
    """
    cutoff = _choose_cutoff(rows, potentials, log_rows, max_candidates)
    if cutoff is None:
        return None
    return _solve(_collect(rows, potentials, log_rows, cutoff), potentials, target, cutoff - _MARGIN, tolerance)


def _choose_cutoff(rows: Rows, potentials: np.ndarray, log_rows: np.ndarray, max_candidates: int | None) -> float | None:
    """Returns the cutoff at which lists have the right length, judged by a few rows; None if it would be too small."""
    some = np.linspace(0, rows.num_rows - 1, min(rows.num_rows, _ROWS_TO_LOOK_AT)).astype(np.int64)
    distances = (log_rows[some, np.newaxis] - rows.scores(some) - potentials).ravel()
    distances = np.append(distances[np.isfinite(distances)], np.inf)
    most = max(_MIN_PER_ROW, min(_MAX_PER_ROW, int(rows.num_clusters * _MAX_SHARE_OF_ROW)))
    affordable = most if max_candidates is None else min(most, max_candidates / rows.num_rows)
    ranks = [min(int(count * len(some)), len(distances) - 1) for count in (_MIN_PER_ROW, affordable)]
    near, far = np.partition(distances, ranks)[ranks].tolist()
    cutoff = min(max(_USUAL_CUTOFF, near), far)
    return cutoff if cutoff >= _MIN_CUTOFF else None


def _collect(rows: Rows, potentials: np.ndarray, log_rows: np.ndarray, cutoff: float) -> CandidateLists:
    """Makes the candidate lists, in a pass by NumPy."""

    def collect_slice(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        scores = rows.scores(part)
        entries = _above(scores, potentials.astype(scores.dtype), (log_rows[part] - cutoff).astype(scores.dtype))
        row, column = np.divmod(entries, rows.num_clusters)
        if rows.counted is not None:
            counted = rows.counted[part][row]
            row, column, entries = row[counted], column[counted], entries[counted]
        count = np.bincount(row, minlength=len(scores))
        several = (count > 1)[row]
        num_certain = np.bincount(column[~several], minlength=rows.num_clusters)
        listed = scores.ravel()[entries[several]] - log_rows[part].astype(np.float64)[row[several]]
        return count[count > 1], column[several], listed, num_certain

    counts, columns, scores, num_certain = zip(*rows.map_slices(collect_slice), strict=True)
    indptr = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    return CandidateLists(
        indptr, np.concatenate(columns), np.concatenate(scores), np.sum(num_certain, axis=0).astype(np.float64), rows.num_counted
    )


def _above(scores: np.ndarray, potentials: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Returns the flat positions, int64 [E], of the entries with score + potential > least of its row.

    It goes block by block through two buffers that stay in the cache.

    Args:
        scores: float [n, K].
        potentials: of the same dtype, [K].
        least: of the same dtype, [n].
    """
    num_rows, num_clusters = scores.shape
    block_rows = max(1, _BLOCK_ENTRIES // num_clusters)
    shifted, found = np.empty((block_rows, num_clusters), scores.dtype), np.empty((block_rows, num_clusters), bool)
    positions = []
    for start in range(0, num_rows, block_rows):
        block = scores[start : start + block_rows]
        count = len(block)
        np.add(block, potentials, out=shifted[:count])
        np.greater(shifted[:count], least[start : start + count, np.newaxis], out=found[:count])
        positions.append(np.flatnonzero(found[:count]) + start * num_clusters)
    return np.concatenate(positions)


def _solve(lists: CandidateLists, start: np.ndarray, target: Target, max_drift: float, tolerance: float) -> np.ndarray:
    """Runs Newton's method on the lists, and returns the potentials float64 [K] that it ends at.

    Args:
        lists: the candidates.
        start: float64 [K], where to start.
        target: the clusters' shares, or their bounds.
        max_drift: the most that one potential may move against another; the method ends there.
        tolerance: the L1 error of the lists' marginals at which it ends.
    """
    indptr, columns, n = lists.indptr, lists.columns, lists.num_rows
    num_clusters = len(start)
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))

    def evaluate(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Returns q of the candidates [E], the masses m [K], and the dual up to a constant."""
        certain = lists.num_certain / n
        if not len(columns):
            return np.zeros(0), certain, target.price(v) - float(certain @ v)
        shifted, highest = lists.scores + v[columns], np.zeros(1)
        if not max_drift < _SAFE_DRIFT:
            highest = np.maximum.reduceat(shifted, indptr[:-1])
            shifted -= highest[row]
        q = np.exp(shifted, out=shifted)
        row_sum = np.add.reduceat(q, indptr[:-1])
        q /= row_sum[row]
        mass = (lists.num_certain + np.bincount(columns, q, num_clusters)) / n
        return q, mass, target.price(v) - float(certain @ v + (highest + np.log(row_sum)).sum() / n)

    v = start
    q, mass, dual = evaluate(v)
    for _ in range(_MAX_STEPS):
        with np.errstate(divide="ignore"):
            error = target.error(v, np.log(mass))
        if error <= tolerance:
            break
        gradient = target.gradient(v, mass)
        step = _newton_step(lists, row, q, v, gradient, target)
        length = part_within(v - start, step, max_drift)
        at_the_limit = length < 1
        while True:
            new = target.within_sign(v, length * step, gradient)
            new_q, new_mass, new_dual = evaluate(new)
            if new_dual >= dual + _SUFFICIENT_RISE * (gradient @ (new - v)) or length < 1e-6:
                break
            length, at_the_limit = length / 2, False
        v, q, mass, dual = new, new_q, new_mass, new_dual
        if at_the_limit:
            break
    return v


def _newton_step(
    lists: CandidateLists, row: np.ndarray, q: np.ndarray, v: np.ndarray, gradient: np.ndarray, target: Target
) -> np.ndarray:
    """Returns the solution float64 [K] of the Newton equations, by conjugate gradients with a ridge.

    Clusters whose potential is 0 and whose mass is within its bounds keep the potential.

    Args:
        lists: the candidates.
        row: int64 [E], the candidates' rows.
        q: float64 [E], the candidates' shares of their rows at the present potentials.
        v: float64 [K], the present potentials.
        gradient: the gradient of the dual, float64 [K].
        target: the clusters' shares, or their bounds.
    """
    num_clusters = len(v)
    # A row that is all but certain joins no clusters.
    joins = np.flatnonzero((q > _NEGLIGIBLE) & (q < 1 - _NEGLIGIBLE))
    plan = csr_matrix((q[joins], (row[joins], lists.columns[joins])), shape=(len(lists.indptr) - 1, num_clusters))
    weights = (plan.T @ plan) / lists.num_rows
    weights.setdiag(0)
    shares = target.lower if target.is_fixed else np.full(num_clusters, 1 / num_clusters)
    degree = np.asarray(weights.sum(axis=1)).ravel() + (1e-5 + _RIDGE * np.abs(gradient).sum()) * shares
    hessian = diags_array(degree) - weights
    if target.is_fixed:
        step, _ = cg(hessian, gradient, rtol=1e-3, maxiter=2 * num_clusters, M=diags_array(1.0 / degree))
        return step - step @ target.lower
    moves, step = np.flatnonzero((v != 0) | (gradient != 0)), np.zeros(num_clusters)
    part = csr_matrix(hessian)[moves][:, moves]
    step[moves], _ = cg(part, gradient[moves], rtol=1e-3, maxiter=2 * num_clusters, M=diags_array(1.0 / degree[moves]))
    return step
