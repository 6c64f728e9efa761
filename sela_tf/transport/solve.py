"""The solve: passes measure how far the clusters' masses are from what they shall be, proposals say where to go next.

An exact pass measures. Where rows are sharp, Newton's method on a few candidates a row proposes the next potentials; otherwise, and
wherever it fails, Anderson-accelerated Sinkhorn does, on rows stored at the present potentials until these have drifted too far from
them. A proposal that an exact pass finds to lower the dual is given up for a plain Sinkhorn step, which cannot.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sela_tf.transport.acceleration import Progress, anderson, within
from sela_tf.transport.newton import BYTES_LISTED, newton
from sela_tf.transport.rows import Measurement, Rows

# What potentials may move apart before stored rows are made anew: what was flushed to zero then still weighs less than 1e-4 of its
# row. Half precision reaches down to exp(-27) of a row, single precision to exp(-97).
MOST_DRIFT = {"float16": 16.0, "float32": 60.0, "none": np.inf}
BYTES_STORED = {"float16": 2, "float32": 4, "none": 0}
"""Bytes of an entry of the matrix in rows that are stored."""
# Logarithm of a mass that only the exact pass can see.
_UNDERFLOW = -60.0
# Stored rows are not exact: what has converged on them shall have something to spare.
_SPARE = 0.9
_MOST_NEWTON_ROUNDS = 40
# Stretches of the core, each until its potentials have drifted, before the problem is first solved at a smaller lam.
_PATIENCE = 6
_ANNEALING, _MOST_ANNEALINGS = 8.0, 4
# Potentials that float32 does not resolve to 1.
_FARTHEST = 1e7
# A cold start from zero potentials this wrong is better made on a share of the rows.
_COARSE_ERROR = 0.5
_COARSE_SHARE = 16
_COARSE_TOLERANCE = 1e-2
_COARSE_ENTRIES = 2**22


def solve(
    rows: Rows,
    start: np.ndarray,
    target: np.ndarray,
    tolerance: float,
    max_passes: int,
    storage: str,
    memory_limit: float | None = None,
    annealings: int = _MOST_ANNEALINGS,
) -> tuple[State, int]:
    """(where the solve ended, passes over all rows); stored rows and Newton's lists take at most `memory_limit` bytes each."""
    most_listed = None if memory_limit is None else int(memory_limit / BYTES_LISTED)
    v, passes, rounds, stretches, stride = _rounded(start), 0, 0, 0, 1.0
    best: State | None = None  # the last that was not given up: the dual only rises
    plain = False
    while True:
        if best is not None and np.abs(v).max() > _FARTHEST:
            # no potentials will do: clusters are forbidden to too many rows
            return best, passes
        now = State(v, rows.measure(v), target)
        passes += 1
        if best is not None and now.dual < best.dual and not plain:
            # a proposal that was none: back, to the plain step that cannot fail, and no more of Newton's
            now, rounds, plain, stride = best, _MOST_NEWTON_ROUNDS, True, 1.0
        else:
            plain = now.log_mass.min() < _UNDERFLOW or passes + 1 >= max_passes
        best = now
        if now.error <= tolerance or passes >= max_passes:
            return now, passes
        if rounds < _MOST_NEWTON_ROUNDS:
            rounds += 1
            proposal = newton(rows, now.potentials, now.measured.log_rows, target, tolerance=tolerance / 4, most_listed=most_listed)
            if proposal is not None:
                v, plain = _rounded(proposal), False
                continue
            rounds = _MOST_NEWTON_ROUNDS
        if plain:
            v = _rounded(now.potentials + np.log(target) - now.measured.log_mass)
            continue
        stretches += 1
        if stretches == _PATIENCE and annealings:
            # potentials have far to go: most of the way is quicker in a smoother problem, whose potentials are in proportion
            smoother, room = rows.at(rows.lam / _ANNEALING), max_passes - passes - 1
            near = now.potentials / _ANNEALING
            end, taken = solve(
                smoother, near, target, max(_COARSE_TOLERANCE, tolerance), room, storage, memory_limit, annealings - 1
            )
            v, passes, rounds = _rounded(end.potentials * _ANNEALING), passes + taken, 0
            continue
        stretch = _iterate(rows, now, target, _SPARE * tolerance, max_passes - passes - 1, storage)
        passes += stretch.num_passes
        # where stretch after stretch ends by drifting, twice as far is tried each time
        v = _rounded(now.potentials + stride * (stretch.potentials - now.potentials))
        stride = 2 * stride if stretch.drifted and stretches > _PATIENCE else 1.0
        if stretch.num_passes == 1 and storage == "float16":
            # half precision has no room for one step, or sees no error where there is one
            storage = "float32" if fits("float32", rows, memory_limit) else "none"


class State:
    """Potentials and what an exact pass said of them."""

    def __init__(self, potentials: np.ndarray, measured: Measurement, target: np.ndarray):
        self.potentials, self.measured, self.log_mass = potentials, measured, measured.log_mass
        self.error = float(np.abs(np.exp(measured.log_mass) - target).sum())
        self.dual = float(target @ potentials) - measured.mean_log_row


def _iterate(rows: Rows, now: State, target: np.ndarray, tolerance: float, max_passes: int, storage: str) -> Progress:
    """The core, on rows stored at the present potentials, until done or drifted."""
    v = now.potentials
    if storage == "none":

        def measure(potentials: np.ndarray) -> tuple[np.ndarray, float]:
            measured = rows.measure(potentials)
            return np.exp(measured.log_mass), measured.mean_log_row
    else:
        measure = rows.absorb(v, now.measured.log_rows, tf.as_dtype(storage)).measure
    room = MOST_DRIFT[storage]
    # the step that the exact measurement asks for needs no pass to be known
    step = np.log(target) - now.log_mass
    first = v + within(np.zeros_like(v), step, 0.5 * room) * step
    return anderson(measure, first, target, tolerance=tolerance, max_passes=max_passes, room=0.5 * room)


def _rounded(potentials: np.ndarray) -> np.ndarray:
    """Mean zero and as float32 holds them, so that what is measured is what is returned."""
    return (potentials - potentials.mean()).astype(np.float32).astype(np.float64)


def fits(storage: str, rows: Rows, memory_limit: float | None) -> bool:
    """Rows stored so take no more than `memory_limit` bytes; None for no limit."""
    return memory_limit is None or BYTES_STORED[storage] * rows.num_rows * rows.num_clusters <= memory_limit


def coarse_start(rows: Rows, target: np.ndarray, tolerance: float, storage: str, memory_limit: float | None = None) -> np.ndarray:
    """Zeros, or where these are far off the solution for a share of the rows."""
    zeros = np.zeros(rows.num_clusters)
    share = min(_COARSE_SHARE, rows.num_rows // (4 * rows.num_clusters))
    if rows.num_rows * rows.num_clusters < _COARSE_ENTRIES or share < 2:
        return zeros
    some = rows.sample(share)
    if some.num_counted < 4 * rows.num_clusters or State(zeros, some.measure(zeros), target).error < _COARSE_ERROR:
        return zeros
    return solve(some, zeros, target, max(_COARSE_TOLERANCE, tolerance), 200, storage, memory_limit)[0].potentials
