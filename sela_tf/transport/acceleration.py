"""Anderson acceleration of Sinkhorn's fixed-point iteration: `anderson`, the method that the solve falls back on.

Sinkhorn's step v <- v + f(v), f_k = log t_k - log m_k(v), ascends the concave dual D(v) = <t, v> - mean_i log sum_k exp(s_ik + v_k),
whose gradient is t - m(v). Anderson acceleration uses the last h steps f and the points v that they were taken at. With their
differences dF, dX [K, h] it goes to v + f - (dX + dF) gamma, where gamma is the least-squares solution of dF gamma = f. The norm is
weighted by m, in which the Hessian of D is about the identity where rows are hard. This costs K h^2 operations, little beside a pass.

An accelerated point whose dual value fell is given up for the plain step from the last good point, and the memory is emptied. Plain
steps never lower the dual, so that the worst case is Sinkhorn's own convergence.

References: D. G. Anderson, Iterative procedures for nonlinear integral equations, J. ACM 1965; H. F. Walker and P. Ni, Anderson
acceleration for fixed-point iterations, SIAM J. Numer. Anal. 2011 (type II).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sela_tf.transport.shards import ALONE, Shards
from sela_tf.transport.target import Target

_MEMORY = 10
# The ridge of the least-squares problem, relative to its trace: differences of float32 marginals carry noise.
_RIDGE = 1e-10
# A cluster that has vanished from stored rows would ask for an infinite step.
_LONGEST_STEP = 10.0
# Duals of float32 passes have errors of this size; a smaller fall means nothing.
_DUAL_NOISE = 1e-6


class AndersonResult(NamedTuple):
    """The state in which the iteration stopped."""

    potentials: np.ndarray
    """The potentials, float64 [K]."""
    error: float
    """The L1 error of the marginals, measured at the potentials; where `drifted`, at the potentials one step before."""
    num_iterations: int
    """The number of passes taken."""
    drifted: bool = False
    """True if the iteration stopped because the potentials had drifted as far as they may."""


def anderson(
    measure: Callable[[np.ndarray], tuple[np.ndarray, float]],
    potentials: np.ndarray,
    target: Target,
    *,
    tolerance: float,
    max_iterations: int,
    max_drift: float = np.inf,
    shards: Shards = ALONE,
) -> AndersonResult:
    """Raises the dual from `potentials` until |m - t|_1 <= tolerance, t being the shares that Sinkhorn's step is for.

    Args:
        measure: the pass, a function from potentials [K] to (m [K], the mean log-sum-exp of the rows up to a constant).
        potentials: float64 [K], where to start.
        target: the clusters' shares, or their bounds.
        tolerance: the L1 error at which to stop.
        max_iterations: the number of passes after which to stop.
        max_drift: the most that one potential may move against another. The iteration stops at a step that goes beyond, at the part
            of the step that does not.
        shards: the workers that have a share of the rows each.
    """
    v, best = potentials, AndersonResult(potentials, np.inf, 0)
    memory = Memory()
    good = (v, np.zeros_like(v), -np.inf)
    for num_iterations in range(1, max_iterations + 1):
        v = shards.of_first(v)
        mass, mean_log_row = measure(v)
        log_mass = np.log(np.maximum(mass, np.finfo(np.float32).tiny))
        log_shares = target.log_shares(v, log_mass)
        error = float(np.abs(mass - np.exp(log_shares)).sum())
        dual = target.price(v) - mean_log_row
        step = log_shares - log_mass
        step = np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        if error < best.error:
            best = AndersonResult(v, error, num_iterations)
        if error <= tolerance:
            break
        if dual < good[2] - _DUAL_NOISE and memory.points:
            memory = Memory()
            v = good[0] + good[1]
            good = (*good[:2], -np.inf)
        else:
            good = (v, step, dual)
            v = memory.accelerated(v, step, np.sqrt(mass))
        v = target.centred(v)
        part = part_within(good[0] - potentials, v - good[0], max_drift)
        if part < 1:
            return AndersonResult(good[0] + part * (v - good[0]), error, num_iterations, drifted=True)
    return best._replace(num_iterations=num_iterations)


class Memory:
    """The last points of an iteration and the steps that it took there: Anderson acceleration takes a better step from them.

    Attributes:
        points: the points, float64 [K] each.
        steps: the steps, float64 [K] each.
    """

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.steps: list[np.ndarray] = []

    def accelerated(self, point: np.ndarray, step: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Returns the next point, float64 [K].

        Args:
            point: float64 [K], the present point.
            step: float64 [K], the step that the iteration would take from there.
            weights: float64 [K], the weights of the norm in which steps are to become small.
        """
        self.points, self.steps = [*self.points, point][-_MEMORY - 1 :], [*self.steps, step][-_MEMORY - 1 :]
        return point + step - _correction(self.points, self.steps, weights)


def _correction(points: list[np.ndarray], steps: list[np.ndarray], weights: np.ndarray) -> np.ndarray | float:
    """Returns (dX + dF) gamma, float64 [K], for the last points and steps, in the norm weighted by `weights` [K]; 0 at first."""
    if len(points) == 1:
        return 0.0
    df = np.diff(steps, axis=0)
    weighted = df * weights
    gram = weighted @ weighted.T
    gram += (_RIDGE * np.trace(gram) + np.finfo(np.float64).tiny) * np.eye(len(gram))
    gamma = np.linalg.solve(gram, weighted @ (steps[-1] * weights))
    return gamma @ (np.diff(points, axis=0) + df)


def part_within(moved: np.ndarray, step: np.ndarray, max_drift: float) -> float:
    """Returns the largest part of a step, in [0, 1], after which no potential has moved by more than `max_drift` against another.

    Args:
        moved: float64 [K], how far the potentials have moved before the step.
        step: float64 [K].
        max_drift: the largest difference between two potentials' moves.
    """
    short, long = 0.0, 1.0
    if np.ptp(moved + step) <= max_drift:
        return long
    for _ in range(20):
        middle = (short + long) / 2
        short, long = (middle, long) if np.ptp(moved + middle * step) <= max_drift else (short, middle)
    return short
