"""The solve: `solve` finds the potentials at which the clusters have their target masses.

An exact pass measures the masses. Where rows are sharp, Newton's method on candidate lists (newton.py) proposes the next potentials.
Otherwise, and where Newton's proposals fail, Anderson-accelerated Sinkhorn (acceleration.py) does, on rows stored at the present
potentials, until the potentials have drifted too far from these. A proposal that lowers the dual, as an exact pass finds, is given up
for a plain Sinkhorn step, which never lowers it.

An iteration is a pass over all rows, exact or stored.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sela_tf.transport.acceleration import AndersonResult, anderson, part_within
from sela_tf.transport.newton import BYTES_PER_CANDIDATE, newton
from sela_tf.transport.rows import Measurement, Rows
from sela_tf.transport.target import Target

# Stored rows are made anew when one potential has drifted by this much against another: entries that were flushed to zero then still
# weigh less than 1e-4 of their row. Half precision reaches down to exp(-27) of a row, single precision to exp(-97).
MAX_DRIFT = {"float16": 16.0, "float32": 60.0, "none": np.inf}
BYTES_STORED = {"float16": 2, "float32": 4, "none": 0}
"""The bytes of an entry of the stored rows, for each value of `storage`."""
# Only an exact pass can see a mass whose logarithm is below this.
_UNDERFLOW = -60.0
# Stored rows are rounded, so that the error on them has to be this much smaller than the tolerance.
_STORED_TOLERANCE = 0.9
_MAX_NEWTON_ROUNDS = 40
# After this number of runs of Anderson-accelerated Sinkhorn, each until its potentials have drifted, the problem is first solved at a smaller lam.
_PATIENCE = 6
_ANNEALING_FACTOR, _MAX_ANNEALINGS = 8.0, 4
# Beyond this, float32 does not resolve potentials to 1.
_MAX_POTENTIAL = 1e7
# A solve of many rows whose zero potentials have at least this error starts on a share of the rows.
_COARSE_ERROR = 0.5
_COARSE_STRIDE = 16
_COARSE_TOLERANCE = 1e-2
_COARSE_ENTRIES = 2**22
_COARSE_ITERATIONS = 200


class State:
    """Potentials, and what an exact pass measured at them.

    Attributes:
        potentials: float64 [K].
        measured: the result of the pass.
        log_mass: the logarithms of the clusters' masses, float64 [K].
        log_shares: the logarithms of the shares that Sinkhorn's step is for, float64 [K].
        error: the L1 distance of the masses from these shares.
        dual: the dual value, in units of scores.
    """

    def __init__(self, potentials: np.ndarray, measured: Measurement, target: Target):
        self.potentials, self.measured, self.log_mass = potentials, measured, measured.log_mass
        self.log_shares = target.log_shares(potentials, measured.log_mass)
        self.error = float(np.abs(np.exp(measured.log_mass) - np.exp(self.log_shares)).sum())
        self.dual = target.price(potentials) - measured.mean_log_row

    @property
    def step(self) -> np.ndarray:
        """Sinkhorn's step, float64 [K]."""
        return self.log_shares - self.log_mass

    @property
    def underflows(self) -> bool:
        """True if a cluster that is to have more has so little that only an exact pass sees it."""
        return bool(((self.log_mass < _UNDERFLOW) & (self.step > 1)).any())


def solve(
    rows: Rows,
    start: np.ndarray,
    target: Target,
    tolerance: float,
    max_iterations: int,
    storage: str,
    memory_limit: float | None = None,
    annealings: int = _MAX_ANNEALINGS,
) -> tuple[State, int]:
    """Finds the potentials at which the clusters' masses are those of `target`.

    Args:
        rows: the N rows of scores.
        start: float64 [K], the potentials to start from.
        target: the clusters' shares, or their bounds.
        tolerance: the L1 error of the marginals at which to stop.
        max_iterations: the number of passes over all rows after which to stop.
        storage: the number format of stored rows: float16, float32 or none.
        memory_limit: the bytes that stored rows may take, and as many that candidate lists may; None for no limit.
        annealings: how many times, one inside the other, the problem may first be solved at a smaller lam.

    Returns:
        The state in which the solve ended, and the number of passes over all rows that it took.
    """
    max_candidates = None if memory_limit is None else int(memory_limit / BYTES_PER_CANDIDATE)
    v, num_iterations, newton_rounds, sinkhorn_runs, stride = _rounded(start, target), 0, 0, 0, 1.0
    best: State | None = None  # The last state that was not given up has the largest dual.
    plain = False
    while True:
        if best is not None and np.abs(v).max() > _MAX_POTENTIAL:
            # No potentials have these marginals: clusters are forbidden to too many rows.
            return best, num_iterations
        now = State(v, rows.measure(v), target)
        num_iterations += 1
        if best is not None and now.dual < best.dual and not plain:
            # The proposal was bad. A plain step from the last good state cannot fail, and Newton's method is not tried again.
            now, newton_rounds, plain, stride = best, _MAX_NEWTON_ROUNDS, True, 1.0
        else:
            plain = now.underflows or num_iterations + 1 >= max_iterations
        best = now
        if now.error <= tolerance or num_iterations >= max_iterations:
            return now, num_iterations
        if newton_rounds < _MAX_NEWTON_ROUNDS:
            newton_rounds += 1
            log_rows = now.measured.log_rows
            proposal = newton(rows, now.potentials, log_rows, target, tolerance=tolerance / 4, max_candidates=max_candidates)
            if proposal is not None:
                v, plain = _rounded(proposal, target), False
                continue
            newton_rounds = _MAX_NEWTON_ROUNDS
        if plain:
            v = _rounded(now.potentials + now.step, target)
            continue
        sinkhorn_runs += 1
        if sinkhorn_runs == _PATIENCE and annealings:
            # The potentials have far to go. Most of the way is quicker at a smaller lam, where potentials are in proportion to lam.
            smoother, iterations_left = rows.with_lam(rows.lam / _ANNEALING_FACTOR), max_iterations - num_iterations - 1
            near, coarse_tolerance = now.potentials / _ANNEALING_FACTOR, max(_COARSE_TOLERANCE, tolerance)
            end, taken = solve(smoother, near, target, coarse_tolerance, iterations_left, storage, memory_limit, annealings - 1)
            v, num_iterations, newton_rounds = _rounded(end.potentials * _ANNEALING_FACTOR, target), num_iterations + taken, 0
            continue
        run = _run_sinkhorn(rows, now, target, _STORED_TOLERANCE * tolerance, max_iterations - num_iterations - 1, storage)
        num_iterations += run.num_iterations
        # Where run after run ends by drifting, twice as far is tried each time.
        v = _rounded(now.potentials + stride * (run.potentials - now.potentials), target)
        stride = 2 * stride if run.drifted and sinkhorn_runs > _PATIENCE else 1.0
        if run.num_iterations == 1 and storage == "float16":
            # A single step drifts too far for half precision, or half precision sees no error where there is one.
            storage = "float32" if fits("float32", rows, memory_limit) else "none"


def _run_sinkhorn(rows: Rows, now: State, target: Target, tolerance: float, max_iterations: int, storage: str) -> AndersonResult:
    """Runs Anderson-accelerated Sinkhorn on rows stored at the present potentials, until it has converged or drifted.

    Args:
        rows: the N rows of scores.
        now: the present state.
        target: the clusters' shares, or their bounds.
        tolerance: the L1 error of the marginals at which to stop.
        max_iterations: the number of passes after which to stop.
        storage: the number format of the stored rows; with "none" passes are exact.
    """
    v = now.potentials
    if storage == "none":

        def measure(potentials: np.ndarray) -> tuple[np.ndarray, float]:
            measured = rows.measure(potentials)
            return np.exp(measured.log_mass), measured.mean_log_row
    else:
        measure = rows.absorb(v, now.measured.log_rows, tf.as_dtype(storage)).measure
    max_drift = 0.5 * MAX_DRIFT[storage]
    # The first step follows from the exact measurement and needs no pass. It may take half of the drift, the iteration the rest.
    first = v + part_within(np.zeros_like(v), now.step, max_drift) * now.step
    return anderson(measure, first, target, tolerance=tolerance, max_iterations=max_iterations, max_drift=max_drift)


def _rounded(potentials: np.ndarray, target: Target) -> np.ndarray:
    """Returns potentials that float32 holds exactly, float64 [K]: those measured are those returned. For fixed shares their mean is zero."""
    return target.centred(potentials).astype(np.float32).astype(np.float64)


def fits(storage: str, rows: Rows, memory_limit: float | None) -> bool:
    """Returns True if rows stored in this format take no more than `memory_limit` bytes; None is no limit."""
    return memory_limit is None or BYTES_STORED[storage] * rows.num_rows * rows.num_clusters <= memory_limit


def coarse_start(rows: Rows, target: Target, tolerance: float, storage: str, memory_limit: float | None = None) -> np.ndarray:
    """Returns potentials float64 [K] to start from: zeros, or the solution for a share of the rows where zeros are far off.

    The arguments are those of `solve`.
    """
    zeros = np.zeros(rows.num_clusters)
    stride = min(_COARSE_STRIDE, rows.num_rows // (4 * rows.num_clusters))
    if rows.num_rows * rows.num_clusters < _COARSE_ENTRIES or stride < 2:
        return zeros
    some = rows.sample(stride)
    if some.num_counted < 4 * rows.num_clusters or State(zeros, some.measure(zeros), target).error < _COARSE_ERROR:
        return zeros
    coarse_tolerance = max(_COARSE_TOLERANCE, tolerance)
    return solve(some, zeros, target, coarse_tolerance, _COARSE_ITERATIONS, storage, memory_limit)[0].potentials
