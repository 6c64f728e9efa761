"""Anderson acceleration of Sinkhorn's fixed point, the dependable core of the solve.

Sinkhorn's step v <- v + f(v), f_k = log t_k - log m_k(v), ascends the concave dual D(v) = <t, v> - mean_i log sum_k exp(s_ik + v_k)
whose gradient is t - m(v). Anderson (1965; type II, as in Walker and Ni 2011) looks at the last steps: with their differences
dF, dX [K, h] it goes to v + f - (dX + dF) gamma, gamma the least-squares solution of dF gamma = f, in the norm in which the
Hessian of D is about the identity where rows are hard: weights m. It costs K h^2 operations, nothing beside a pass.

Safeguard: an accelerated point whose dual value fell is given up for the plain step from the last good one, with an empty memory.
Plain steps never lower the dual, so the worst case is Sinkhorn's own convergence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_MEMORY = 10
# Of the least-squares problem, relative to its trace: differences of float32 marginals carry noise.
_RIDGE = 1e-10
# A cluster that has vanished from a stored kernel would ask for an infinite step.
_LONGEST_STEP = 10.0
# Duals of float32 passes are this exact; a smaller fall is no fall.
_DUAL_NOISE = 1e-6


class Progress(NamedTuple):
    """Where the iteration stopped."""

    potentials: np.ndarray
    """float64 [K]."""
    error: float
    """L1 error of the marginals at them."""
    num_passes: int
    drifted: bool = False
    """Whether the room ended it."""


def anderson(
    measure: Callable[[np.ndarray], tuple[np.ndarray, float]],
    potentials: np.ndarray,
    target: np.ndarray,
    *,
    tolerance: float,
    max_passes: int,
    room: float = np.inf,
) -> Progress:
    """Raises the dual from `potentials` until |m - t|_1 <= tolerance.

    Args:
        measure: one pass: potentials [K] to (m [K], mean log row sum up to a constant).
        potentials: float64 [K], where to start.
        target: t [K], positive, sums to 1.
        tolerance: L1 error at which to stop.
        max_passes: passes after which to stop.
        room: what potentials may move apart; at a step beyond, the iteration stops, at the part of the step that is within.
    """
    v, best = potentials, Progress(potentials, np.inf, 0)
    steps: list[np.ndarray] = []
    points: list[np.ndarray] = []
    good = (v, np.zeros_like(v), -np.inf)
    for num_passes in range(1, max_passes + 1):
        mass, mean_log_row = measure(v)
        error = float(np.abs(mass - target).sum())
        dual = float(target @ v) - mean_log_row
        step = np.log(target) - np.log(np.maximum(mass, np.finfo(np.float32).tiny))
        step = np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        if error < best.error:
            best = Progress(v, error, num_passes)
        if error <= tolerance:
            break
        if dual < good[2] - _DUAL_NOISE and len(points):
            points, steps = [], []
            v = good[0] + good[1]
            good = (*good[:2], -np.inf)
        else:
            good = (v, step, dual)
            points, steps = [*points, v][-_MEMORY - 1 :], [*steps, step][-_MEMORY - 1 :]
            v = v + step - _correction(points, steps, np.sqrt(mass))
        v = v - v @ target
        part = within(good[0] - potentials, v - good[0], room)
        if part < 1:
            return Progress(good[0] + part * (v - good[0]), error, num_passes, drifted=True)
    return best._replace(num_passes=num_passes)


def _correction(points: list[np.ndarray], steps: list[np.ndarray], weights: np.ndarray) -> np.ndarray | float:
    """(dX + dF) gamma."""
    if len(points) == 1:
        return 0.0
    df = np.diff(steps, axis=0)
    weighted = df * weights
    gram = weighted @ weighted.T
    gram += (_RIDGE * np.trace(gram) + np.finfo(np.float64).tiny) * np.eye(len(gram))
    gamma = np.linalg.solve(gram, weighted @ (steps[-1] * weights))
    return gamma @ (np.diff(points, axis=0) + df)


def within(moved: np.ndarray, step: np.ndarray, room: float) -> float:
    """The largest part of `step`, at most 1, after which no two potentials have moved apart by more than `room`."""
    short, long = 0.0, 1.0
    if np.ptp(moved + step) <= room:
        return long
    for _ in range(20):
        middle = (short + long) / 2
        short, long = (middle, long) if np.ptp(moved + middle * step) <= room else (short, middle)
    return short
