"""The solve: `solve` finds the potentials at which the clusters have their target masses.

An exact pass measures the masses. Where rows are sharp, the same pass lists the candidates of each row (lists.py), and Newton's method on
these lists (newton.py) proposes the next potentials. Otherwise, on graphics cards, and where Newton's proposals fail, the pass stores the rows,
and Anderson-accelerated Sinkhorn (acceleration.py) goes on with them until the potentials have drifted too far. The next exact pass judges
the proposal. Where it lowered the dual, lists are made to reach farther, or a plain Sinkhorn step is taken, which never lowers it.

An iteration is a pass over all rows, exact or stored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.acceleration import AndersonResult, Memory, anderson, part_within
from sela_tf.transport.lists import MOST_MISSED, ListMaker, Lists
from sela_tf.transport.newton import newton
from sela_tf.transport.rows import Rows
from sela_tf.transport.state import Solved, State
from sela_tf.transport.stored_rows import StoredRows
from sela_tf.transport.target import Target

# Stored rows are made anew when one potential has drifted by this much against another: entries that were flushed to zero then still
# weigh less than 1e-4 of their row. Half precision reaches down to exp(-27) of a row, single precision to exp(-75) (passes.py).
MAX_DRIFT = {"float16": 16.0, "float32": 50.0, "none": np.inf}
BYTES_STORED = {"float16": 2, "float32": 4, "none": 0}
"""The bytes of an entry of the stored rows, for each value of `storage`."""
# Stored rows are rounded, so that the error on them has to be this much smaller than the tolerance.
_STORED_TOLERANCE = 0.9
_MAX_NEWTON_ROUNDS = 40
# Lists reach at most so many times as far as usual.
_MAX_REACH = 4
# A proposal from a share of the rows that lowers the dual is halved so many times.
_MAX_HALVINGS = 3
# Potentials found on lists need no exact pass where the entries that are not listed weigh less of every row, and on average.
_MISSED_IN_A_ROW, _MISSED = 1e-3, 1e-6
# After this number of runs of Anderson-accelerated Sinkhorn, each until its potentials have drifted, the problem is first solved at a smaller lam.
_PATIENCE = 6
_ANNEALING_FACTOR = 8.0
_COARSE_TOLERANCE = 1e-2
# Beyond this, float32 does not resolve potentials to 1.
_MAX_POTENTIAL = 1e7


class Settings(NamedTuple):
    """The exactness that is asked of a solve, and what it may take."""

    tolerance: float
    """The L1 error of the marginals at which to stop."""
    max_iterations: int
    """The number of passes over all rows after which to stop."""
    storage: str
    """The number format of stored rows: float16, float32 or none."""
    memory_limit: float | None = None
    """The bytes that stored rows may take, and as many that candidate lists may; None for no limit."""
    annealings: int = 4
    """The number of times, one inside the other, that the problem may first be solved at a smaller lam."""


def solve(rows: Rows, start: np.ndarray, target: Target, settings: Settings) -> Solved:
    """Finds the potentials at which the masses of the clusters of N rows are those of `target`, from the potentials `start`, float64 [K]."""
    search = _Search(rows, start, target, settings)
    while (solved := search.run_round()) is None:
        pass
    return solved


class _Search:
    """The state of a solve: the potentials to be measured next, and how they were found.

    Attributes:
        v: float64 [K], the potentials that are measured next.
        best: the last state that was not given up, which has the largest dual; None at first.
        num_iterations: the number of passes over all rows until now.
        storage: the number format of stored rows.
        lists: the candidate lists made at `best`; also those that led to `v`, if it seems to be the end; otherwise None.
        stored: the rows, stored at `best`; None if they are not.
        newton_rounds: how many times Newton's method has made a proposal; the largest number where it is given up.
        most_newton_rounds: the number of proposals after which it is given up.
        reach: how many times as far as usual the next lists reach.
        shares: the memory of the acceleration of proposals from lists of a share of the rows.
        fallbacks: the potentials to try, one after the other, where the last of these proposals lowers the dual.
        sinkhorn_runs: the number of runs of Anderson-accelerated Sinkhorn.
        stride: how many times as far as its potentials the next run may go.
        is_plain: True if `v` follows from `best` by a plain step, which never lowers the dual.
        seems_end: True if `v` has the right marginals where it was found, on lists or on stored rows.
    """

    def __init__(self, rows: Rows, start: np.ndarray, target: Target, settings: Settings):
        """Takes the arguments of `solve`."""
        self.rows, self.target, self.settings, self.storage = rows, target, settings, settings.storage
        self.maker = ListMaker(rows, target, settings.memory_limit)
        self.v, self.num_iterations = _rounded(start, target), 0
        self.best: State | None = None
        self.lists: Lists | None = None
        self.stored: StoredRows | None = None
        # A graphics card makes hundreds of passes in the time in which the host would work on lists.
        self.most_newton_rounds = 0 if rows.placement.on_cards else _MAX_NEWTON_ROUNDS
        self.newton_rounds, self.reach, self.shares = 0, 1, Memory()
        self.fallbacks: list[np.ndarray] = []
        self.sinkhorn_runs, self.stride = 0, 1.0
        self.is_plain = self.seems_end = False

    def run_round(self) -> Solved | None:
        """Measures the potentials and finds the next; returns None while the search is to go on."""
        if self.best is not None and np.abs(self.v).max() > _MAX_POTENTIAL:
            # No potentials have these marginals: clusters are forbidden to too many rows.
            return Solved(self.best, self.num_iterations)
        now, labels = self._measure()
        # Close to the end the dual's rounding is larger than its rise.
        is_end = now.error <= self.settings.tolerance
        is_worse = self.best is not None and now.dual < self.best.dual and not (self.is_plain or is_end)
        is_worse = self.rows.shards.decide(is_worse)
        if self.best is None or not is_worse:
            self.best = now
        if self.best.error <= self.settings.tolerance or self.num_iterations >= self.settings.max_iterations:
            return self._result(self.best, None if is_worse else labels)
        self.is_plain = self.best.underflows or self.num_iterations + 1 >= self.settings.max_iterations
        if is_worse:
            self._retreat(self.best)
        elif self.uses_newton and self.seems_end:
            self.seems_end = False  # It was not: the same potentials are measured again, with lists.
        elif self.lists is not None:
            return self._propose_by_newton(self.best, self.lists)
        else:
            self._go_on_by_sinkhorn(self.best)
        return None

    @property
    def uses_newton(self) -> bool:
        """True until Newton's method is given up."""
        return self.newton_rounds < self.most_newton_rounds

    def _measure(self) -> tuple[State, np.ndarray | None]:
        """Makes an exact pass at the potentials, which keeps what the next proposal needs; returns also labels where it finds them."""
        labels, listed, self.stored = None, None, None
        self.v = self.rows.shards.of_first(self.v)
        if not self.seems_end:
            self.lists = None  # The old lists are not kept beside the new.
            error = np.inf if self.best is None else self.best.error
            listed = self.maker.measure_and_list(self.v, self.reach, error) if self.uses_newton else None
        if listed is not None:
            measured, self.lists = listed
        elif self.seems_end and self.lists is None:
            measured, labels = self.rows.measure_and_label(self.v)
        elif self.storage == "none" or self.is_plain or self.seems_end:
            measured = self.rows.measure(self.v)
        else:
            measured, self.stored = self.rows.measure_and_store(self.v, tf.as_dtype(self.storage))
        self.num_iterations += 1
        return State(self.v, measured, self.target), labels

    def _result(self, end: State, labels: np.ndarray | None) -> Solved:
        """Returns the end of the solve, which an exact pass measured."""
        if self.lists is None or not self.lists.are_whole:
            return Solved(end, self.num_iterations, labels=labels)
        log_rows = self.rows.that_count(end.measured.log_rows)
        return Solved(end, self.num_iterations, self.lists.candidates, log_rows, labels)

    def _retreat(self, best: State) -> None:
        """Gives up potentials that lowered the dual. Lists that reach farther may make a better proposal; a plain step cannot fail."""
        self.lists, self.stored, self.seems_end, self.stride = None, None, False, 1.0
        if self.uses_newton and self.fallbacks:
            self.v, self.shares = self.fallbacks.pop(0), Memory()
            return
        self.reach *= 2
        if self.uses_newton and self.reach <= _MAX_REACH:
            self.v = best.potentials
            return
        self.newton_rounds, self.is_plain = self.most_newton_rounds, True
        self.v = _rounded(best.potentials + best.step, self.target)

    def _propose_by_newton(self, now: State, lists: Lists) -> Solved | None:
        """Runs Newton's method on the lists; returns the end if no pass is needed to measure it."""
        self.newton_rounds, self.is_plain = self.newton_rounds + 1, False
        v = newton(lists.candidates, lists.target, self.settings.tolerance / 10)
        if not lists.are_whole:
            self._propose_by_part(now, v, lists)
            return None
        self.v, self.fallbacks = _rounded(v, self.target), []
        at = lists.candidates.evaluate(self.v)
        end, missing = State(self.v, lists.candidates.measured(at), self.target), lists.candidates.missing(self.v, at)
        self.seems_end = end.error <= self.settings.tolerance
        if self.seems_end and end.dual >= now.dual and missing.worst <= _MISSED_IN_A_ROW and missing.mean <= _MISSED:
            # So little is not listed that no pass is needed to measure these potentials.
            return Solved(end, self.num_iterations, lists.candidates)
        return None

    def _propose_by_part(self, now: State, v: np.ndarray, lists: Lists) -> None:
        """Takes potentials to which Newton's method came on lists of a part of the rows; those of a share are mixed with earlier ones."""
        step = v - now.potentials
        parts = [_rounded(now.potentials + step / 2**halvings, self.target) for halvings in range(_MAX_HALVINGS + 1)]
        if not lists.are_of_share:
            self.shares = Memory()
            # Only what the lists lack can still be wrong.
            self.seems_end = now.error * MOST_MISSED <= self.settings.tolerance and lists.error(v) <= self.settings.tolerance
            self.lists = None if self.seems_end else lists
        mixed = self.shares.accelerated(now.potentials, step, np.exp(now.log_mass / 2))
        self.v = _rounded(mixed, self.target)
        self.fallbacks = parts if len(self.shares.points) > 1 else parts[1:]

    def _go_on_by_sinkhorn(self, now: State) -> None:
        """Finds the next potentials by a plain step, at a smaller lam, or by Anderson-accelerated Sinkhorn on stored rows."""
        self.lists, self.newton_rounds, self.seems_end = None, self.most_newton_rounds, False
        if self.is_plain:
            self.v = _rounded(now.potentials + now.step, self.target)
            return
        self.sinkhorn_runs += 1
        if self.sinkhorn_runs == _PATIENCE and self.settings.annealings:
            self._anneal(now)
            return
        run = self._run_sinkhorn(now)
        self.seems_end = not run.drifted
        self.num_iterations += run.num_iterations
        # Where run after run ends by drifting, twice as far is tried each time.
        self.v = _rounded(now.potentials + self.stride * (run.potentials - now.potentials), self.target)
        self.stride = 2 * self.stride if run.drifted and self.sinkhorn_runs > _PATIENCE else 1.0
        if run.num_iterations == 1 and self.storage == "float16":
            # A single step drifts too far for half precision, or half precision sees no error where there is one.
            self.storage = "float32" if fits("float32", self.rows, self.settings.memory_limit) else "none"

    def _anneal(self, now: State) -> None:
        """Solves the problem at a smaller lam: the potentials, which are in proportion to lam, have far to go, and go quicker there."""
        settings = Settings(
            max(_COARSE_TOLERANCE, self.settings.tolerance),
            self.settings.max_iterations - self.num_iterations - 1,
            self.storage,
            self.settings.memory_limit,
            self.settings.annealings - 1,
        )
        smoother = self.rows.with_lam(self.rows.lam / _ANNEALING_FACTOR)
        smooth = solve(smoother, now.potentials / _ANNEALING_FACTOR, self.target, settings)
        self.v, self.newton_rounds = _rounded(smooth.end.potentials * _ANNEALING_FACTOR, self.target), 0
        self.num_iterations += smooth.num_iterations

    def _run_sinkhorn(self, now: State) -> AndersonResult:
        """Runs Anderson-accelerated Sinkhorn on rows stored at the present potentials, until it has converged or drifted."""
        v = now.potentials
        if self.storage == "none":

            def measure(potentials: np.ndarray) -> tuple[np.ndarray, float]:
                measured = self.rows.measure(potentials)
                return np.exp(measured.log_mass), measured.mean_log_row
        else:
            measure = (self.stored or self.rows.absorb(v, now.measured.log_rows, tf.as_dtype(self.storage))).measure
        max_drift = 0.5 * MAX_DRIFT[self.storage]
        # The first step follows from the exact measurement and needs no pass. It may take half of the drift, the iteration the rest.
        first = v + part_within(np.zeros_like(v), now.step, max_drift) * now.step
        tolerance, max_iterations = (
            _STORED_TOLERANCE * self.settings.tolerance,
            self.settings.max_iterations - self.num_iterations - 1,
        )
        return anderson(
            measure,
            first,
            self.target,
            tolerance=tolerance,
            max_iterations=max_iterations,
            max_drift=max_drift,
            shards=self.rows.shards,
        )


def _rounded(potentials: np.ndarray, target: Target) -> np.ndarray:
    """Returns potentials that float32 holds exactly, float64 [K]: those measured are those returned. For fixed shares their mean is zero."""
    return target.centred(potentials).astype(np.float32).astype(np.float64)


def fits(storage: str, rows: Rows, memory_limit: float | None) -> bool:
    """Returns True if rows stored in this format take no more than `memory_limit` bytes; None is no limit."""
    return memory_limit is None or BYTES_STORED[storage] * rows.num_most * rows.num_clusters <= memory_limit
