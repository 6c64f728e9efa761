"""Newton's method on candidate lists: `newton`, the accelerator for sharp rows, where Sinkhorn's iteration needs hundreds of passes.

With q_i = softmax(s_i + v), the dual D(v) has the gradient t - m and the Hessian -(diag(m) - mean_i q_i q_i^T). The Hessian is the
negative Laplacian of a graph on the clusters, in which j and k are joined with the weight mean_i q_ij q_ik. The graph is sparse where
rows are sharp: at lam = 25 a row of a trained network has one or two clusters that it may go to.

So one pass lists each row's candidates (candidates.py). Newton's method is run to its end on these lists, a few numbers a row: conjugate
gradients solve for the step, with a ridge that shrinks with the error, and a step is halved until D rises. It ends earlier where
entries that are not listed begin to matter.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import cg

from sela_tf.transport.candidates import Candidates, Evaluation
from sela_tf.transport.target import Target

# A potential may rise by the cutoff less this margin against the log-sum-exp of the rows: until then, an entry that is not listed weighs less
# than exp(-margin) of a row that has risen as others have. Rows that have fallen are seen by the next pass. Half of a small cutoff is allowed.
_MARGIN = 10.0
# Steps are not made shorter.
_SHORTEST = 1e-6
# So many steps in a row may be cut short at the limit.
_PATIENCE = 2
_MAX_STEPS = 30
_RIDGE = 0.1
_SUFFICIENT_RISE = 1e-4


def newton(candidates: Candidates, target: Target, tolerance: float) -> np.ndarray:
    """Proposes potentials, float64 [K], at which the marginals of the candidate lists are those of `target`.

    Args:
        candidates: the lists, whose potentials are the start.
        target: the clusters' shares, or their bounds.
        tolerance: the L1 error of the lists' marginals at which to stop.

    Returns:
        The potentials, or those on the way to them where lists would have to be made anew.
    """
    v, at, shards = candidates.potentials, candidates.evaluate(candidates.potentials), candidates.shards
    at_the_limit, is_end = 0, shards.decide(_error(target, v, at) <= tolerance)
    for _ in range(_MAX_STEPS):
        if is_end:
            break
        gradient, dual = target.gradient(v, at.mass), target.price(v) - at.mean_rise
        step = _newton_step(candidates, at.q, v, gradient, target)
        # The mean log-sum-exp of the rows rises by at least mass @ step, as it is convex.
        risen = v - candidates.potentials - at.mean_rise
        length = _part_below(risen, step - at.mass @ step, max(candidates.cutoff - _MARGIN, candidates.cutoff / 2))
        at_the_limit = at_the_limit + 1 if length < 1 else 0
        while True:
            new = shards.of_first(target.within_sign(v, length * step, gradient))
            new_at = candidates.evaluate(new)
            has_risen = target.price(new) - new_at.mean_rise >= dual + _SUFFICIENT_RISE * (gradient @ (new - v))
            is_there = _error(target, new, new_at) <= tolerance or at_the_limit > _PATIENCE
            is_taken, is_end = shards.of_first(np.array([has_risen or length < _SHORTEST, is_there], np.float64)) > 0
            if is_taken:
                break
            length /= 2
        v, at = new, new_at
    return v


def _error(target: Target, v: np.ndarray, at: Evaluation) -> float:
    """Returns the L1 error of the marginals of the lists at the potentials v, at which the plan is `at`."""
    with np.errstate(divide="ignore"):
        return target.error(v, np.log(at.mass))


def _part_below(moved: np.ndarray, step: np.ndarray, limit: float) -> float:
    """Returns the largest part of a step, in [0, 1], after which no entry of `moved` is above the limit."""
    up = step > 0
    return float(np.clip(((limit - moved[up]) / step[up]).min(initial=1.0), 0.0, 1.0))


def _newton_step(candidates: Candidates, q: np.ndarray, v: np.ndarray, gradient: np.ndarray, target: Target) -> np.ndarray:
    """Returns the solution float64 [K] of the Newton equations, by conjugate gradients with a ridge.

    Clusters whose potential is 0 and whose mass is within its bounds keep the potential.

    Args:
        candidates: the lists.
        q: float64 [E], the candidates' shares of their rows at the present potentials.
        v: float64 [K], the present potentials.
        gradient: the gradient of the dual, float64 [K].
        target: the clusters' shares, or their bounds.
    """
    num_clusters = len(v)
    weights = candidates.joins(q, num_clusters)
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
