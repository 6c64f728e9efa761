"""The solve: `solve` finds the potentials at which the clusters have their target masses.

An exact pass measures the masses. Where rows are sharp, the same pass lists the candidates of each row (candidates.py), and Newton's
method on these lists (newton.py) proposes the next potentials. Otherwise, and where Newton's proposals fail, the pass stores the rows,
and Anderson-accelerated Sinkhorn (acceleration.py) goes on with them until the potentials have drifted too far. The next exact pass judges
the proposal. Where it lowered the dual, lists are made to reach farther, or a plain Sinkhorn step is taken, which never lowers it.

An iteration is a pass over all rows, exact or stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.acceleration import AndersonResult, anderson, part_within
from sela_tf.transport.candidates import BYTES_PER_CANDIDATE, USUAL_CUTOFF, Candidates, choose_cutoff
from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.measurement import Measurement
from sela_tf.transport.newton import newton
from sela_tf.transport.rows import Rows
from sela_tf.transport.stored_rows import StoredRows
from sela_tf.transport.target import Target

# Stored rows are made anew when one potential has drifted by this much against another: entries that were flushed to zero then still
# weigh less than 1e-4 of their row. Half precision reaches down to exp(-27) of a row, single precision to exp(-75) (passes.py).
MAX_DRIFT = {"float16": 16.0, "float32": 50.0, "none": np.inf}
BYTES_STORED = {"float16": 2, "float32": 4, "none": 0}
"""The bytes of an entry of the stored rows, for each value of `storage`."""
# Only an exact pass can see a mass whose logarithm is below this.
_UNDERFLOW = -60.0
# Stored rows are rounded, so that the error on them has to be this much smaller than the tolerance.
_STORED_TOLERANCE = 0.9
_MAX_NEWTON_ROUNDS = 40
_MAX_REACH = 4 * USUAL_CUTOFF
# Potentials found on lists need no exact pass where the entries that are not listed weigh less of every row, and on average.
_MISSED_IN_A_ROW, _MISSED = 1e-3, 1e-6
# After this number of runs of Anderson-accelerated Sinkhorn, each until its potentials have drifted, the problem is first solved at a smaller lam.
_PATIENCE = 6
_ANNEALING_FACTOR, _MAX_ANNEALINGS = 8.0, 4
# Beyond this, float32 does not resolve potentials to 1.
_MAX_POTENTIAL = 1e7
# A solve of many rows whose zero potentials have at least this error starts on a share of the rows.
_COARSE_ERROR = 0.5
_COARSE_ROWS, _COARSE_ROWS_PER_CLUSTER = 2**12, 2
_COARSE_TOLERANCE = 1e-2
_COARSE_ENTRIES = 2**22
_COARSE_LAMS, _SOFT_COARSE_LAMS = (1 / 32, 1 / 8, 1 / 2), (1.0,) * 4


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


class Solved(NamedTuple):
    """The end of a solve."""

    end: State
    """The state in which it ended."""
    num_iterations: int
    """The number of passes over all rows that it took."""
    candidates: Candidates | None = None
    """Lists of candidates that led there; None if there are none."""
    log_rows: np.ndarray | None = None
    """The log-sum-exp of the rows that count, as an exact pass measured it there, float [R]; None where the lists have all that matters."""
    labels: np.ndarray | None = None
    """The labels of all rows at the potentials, int64 [N], where the last pass found them, too."""


def solve(
    rows: Rows,
    start: np.ndarray,
    target: Target,
    tolerance: float,
    max_iterations: int,
    storage: str,
    memory_limit: float | None = None,
    annealings: int = _MAX_ANNEALINGS,
) -> Solved:
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
        The state in which the solve ended.
    """
    max_candidates = None if memory_limit is None else int(memory_limit / BYTES_PER_CANDIDATE)
    v, num_iterations, newton_rounds, sinkhorn_runs, stride = _rounded(start, target), 0, 0, 0, 1.0
    best: State | None = None  # The last state that was not given up has the largest dual.
    plain = False  # The potentials follow by a plain step from those before.
    seems_end = False  # The potentials had the right marginals where they were found, on lists or on stored rows.
    candidates: Candidates | None = None
    reach = USUAL_CUTOFF
    while True:
        if best is not None and np.abs(v).max() > _MAX_POTENTIAL:
            # No potentials have these marginals: clusters are forbidden to too many rows.
            return Solved(best, num_iterations)
        stored, cutoff, labels = None, None, None
        if newton_rounds < _MAX_NEWTON_ROUNDS and not seems_end:
            candidates = None  # The old lists are not kept beside the new.
            cutoff = choose_cutoff(rows, v, reach, max_candidates)
        if cutoff is not None:
            measured, near = rows.measure_and_list(v, cutoff)
            candidates = Candidates(near, rows.that_count(measured.log_rows), v, cutoff)
        elif seems_end and candidates is None:
            measured, labels = rows.measure_and_label(v)
        elif storage == "none" or plain or seems_end:
            measured = rows.measure(v)
        else:
            measured, stored = rows.measure_and_store(v, tf.as_dtype(storage))
        now = State(v, measured, target)
        num_iterations += 1
        is_worse = best is not None and now.dual < best.dual and not plain
        if best is not None and is_worse:
            now, stored, candidates, labels = best, None, None, None
        best = now
        if now.error <= tolerance or num_iterations >= max_iterations:
            log_rows = None if candidates is None else rows.that_count(measured.log_rows)
            return Solved(now, num_iterations, candidates, log_rows, labels)
        plain = now.underflows or num_iterations + 1 >= max_iterations
        if is_worse:
            # The proposal was bad. Lists that reach farther may make a better one; a plain step cannot fail.
            seems_end, reach, stride = False, 2 * reach, 1.0
            if newton_rounds < _MAX_NEWTON_ROUNDS and reach <= _MAX_REACH:
                v = now.potentials
                continue
            newton_rounds, plain = _MAX_NEWTON_ROUNDS, True
        if newton_rounds < _MAX_NEWTON_ROUNDS and cutoff is not None and candidates is not None:
            newton_rounds, plain = newton_rounds + 1, False
            v = _rounded(newton(candidates, target, tolerance / 10), target)
            at = candidates.evaluate(v)
            end, missing = State(v, candidates.measured(at), target), candidates.missing(v, at)
            seems_end = end.error <= tolerance
            if seems_end and end.dual >= now.dual and missing.worst <= _MISSED_IN_A_ROW and missing.mean <= _MISSED:
                # So little is not listed that no pass is needed to measure these potentials.
                return Solved(end, num_iterations, candidates)
            continue
        if newton_rounds < _MAX_NEWTON_ROUNDS and seems_end:
            seems_end = False  # It was not: the same potentials are measured again, with lists.
            continue
        candidates, newton_rounds, seems_end = None, _MAX_NEWTON_ROUNDS, False
        if plain:
            v = _rounded(now.potentials + now.step, target)
            continue
        sinkhorn_runs += 1
        if sinkhorn_runs == _PATIENCE and annealings:
            # The potentials have far to go. Most of the way is quicker at a smaller lam, where potentials are in proportion to lam.
            smoother, iterations_left = rows.with_lam(rows.lam / _ANNEALING_FACTOR), max_iterations - num_iterations - 1
            start_there, coarse_tolerance = now.potentials / _ANNEALING_FACTOR, max(_COARSE_TOLERANCE, tolerance)
            smooth = solve(smoother, start_there, target, coarse_tolerance, iterations_left, storage, memory_limit, annealings - 1)
            v, newton_rounds = _rounded(smooth.end.potentials * _ANNEALING_FACTOR, target), 0
            num_iterations += smooth.num_iterations
            continue
        iterations_left = max_iterations - num_iterations - 1
        run = _run_sinkhorn(rows, now, stored, target, _STORED_TOLERANCE * tolerance, iterations_left, storage)
        seems_end = not run.drifted
        num_iterations += run.num_iterations
        # Where run after run ends by drifting, twice as far is tried each time.
        v = _rounded(now.potentials + stride * (run.potentials - now.potentials), target)
        stride = 2 * stride if run.drifted and sinkhorn_runs > _PATIENCE else 1.0
        if run.num_iterations == 1 and storage == "float16":
            # A single step drifts too far for half precision, or half precision sees no error where there is one.
            storage = "float32" if fits("float32", rows, memory_limit) else "none"


def _run_sinkhorn(
    rows: Rows,
    now: State,
    stored: StoredRows | None,
    target: Target,
    tolerance: float,
    max_iterations: int,
    storage: str,
) -> AndersonResult:
    """Runs Anderson-accelerated Sinkhorn on rows stored at the present potentials, until it has converged or drifted.

    Args:
        rows: the N rows of scores.
        now: the present state.
        stored: the rows as they are stored at the present potentials; None if they are still to be stored.
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
        measure = (stored or rows.absorb(v, now.measured.log_rows, tf.as_dtype(storage))).measure
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


def coarse_start(rows: Rows, target: Target) -> np.ndarray:
    """Returns potentials float64 [K] to start from: zeros, or those of an annealing on a share of the rows where zeros are far off.

    The annealing takes one Sinkhorn step at each of a few growing lam.
    """
    zeros = np.zeros(rows.num_clusters)
    if rows.num_rows * rows.num_clusters < _COARSE_ENTRIES:
        return zeros
    is_sharp = choose_cutoff(rows, zeros, USUAL_CUTOFF, None) is not None
    number = max(_COARSE_ROWS, _COARSE_ROWS_PER_CLUSTER * rows.num_clusters) if is_sharp else _COARSE_ROWS
    some = rows.sample(number)
    if some.num_counted < number / 2:
        return zeros
    try:
        if State(zeros, some.measure(zeros), target).error < _COARSE_ERROR:
            return zeros
        return _annealed(some, target, _COARSE_LAMS if is_sharp else _SOFT_COARSE_LAMS)
    except NotFiniteError:
        # A cluster may be forbidden to all of these rows, but not to others; and a pass over all rows names the row that is wrong.
        return zeros


def _annealed(rows: Rows, target: Target, parts: Sequence[float]) -> np.ndarray:
    """Returns potentials float64 [K] after a Sinkhorn step at each of some parts of lam."""
    v, before = np.zeros(rows.num_clusters), 1.0
    for part in parts:
        v, before = v * (part / before), part
        v = v + State(v, rows.with_lam(rows.lam * part).measure(v), target).step
    return v / before
