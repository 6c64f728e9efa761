"""The potentials that a solve is at, `State`, and its end, `Solved`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sela_tf.transport.candidates import Candidates
from sela_tf.transport.measurement import Measurement
from sela_tf.transport.target import Target

# Only an exact pass can see a mass whose logarithm is below this.
_UNDERFLOW = -60.0


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
