"""The aim of a solve of the transport, `Target`: shares of the rows for the clusters, or bounds of these shares."""

from __future__ import annotations

import numpy as np


class Target:
    """The clusters' shares of the rows that a solve looks for: K shares, or bounds of them.

    The potentials of a transport with bounds are signed prices (the duals of the bounds): a cluster with a positive potential has its
    smallest share, one with a negative potential its largest, and a cluster with any other share has the potential 0.

    Args:
        lower: the smallest shares, float64 [K].
        upper: the largest shares, float64 [K], positive; None if `lower` are the shares themselves, of sum 1.
    """

    def __init__(self, lower: np.ndarray, upper: np.ndarray | None = None):
        self.is_fixed = upper is None
        self.lower, self.upper = lower, lower if upper is None else upper
        with np.errstate(divide="ignore"):
            self._log_lower, self._log_upper = np.log(self.lower), np.log(self.upper)

    def log_shares(self, potentials: np.ndarray, log_mass: np.ndarray) -> np.ndarray:
        """Returns the logarithms of the shares t that Sinkhorn's step v + log t - log m is for, float64 [K].

        They are the shares within the bounds that are nearest to those that the clusters would have without their potential.

        Args:
            potentials: float64 [K].
            log_mass: float64 [K], the logarithms of the clusters' masses at these potentials.
        """
        return self._log_lower if self.is_fixed else np.clip(log_mass - potentials, self._log_lower, self._log_upper)

    def error(self, potentials: np.ndarray, log_mass: np.ndarray) -> float:
        """Returns the L1 distance of the clusters' masses from the shares that Sinkhorn's iteration gives them next; 0 at the solution."""
        return float(np.abs(np.exp(log_mass) - np.exp(self.log_shares(potentials, log_mass))).sum())

    def gradient(self, potentials: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """Returns the gradient of the dual, float64 [K]; where a potential is 0, that of least magnitude.

        Args:
            potentials: float64 [K].
            mass: float64 [K], the clusters' masses at these potentials.
        """
        if self.is_fixed:
            return self.lower - mass
        at_zero = np.clip(mass, self.lower, self.upper)
        return np.where(potentials > 0, self.lower, np.where(potentials < 0, self.upper, at_zero)) - mass

    def within_sign(self, potentials: np.ndarray, step: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Returns the potentials after a step, float64 [K]; those that would change their sign, and so their bound, stop at 0.

        Args:
            potentials: float64 [K].
            step: float64 [K].
            gradient: float64 [K], of the dual. A potential of 0 may only move to where it raises the dual.
        """
        new = potentials + step
        if self.is_fixed:
            return new
        side = np.where(potentials != 0, potentials, gradient)
        return np.where((new * side < 0) & (self.lower < self.upper), 0.0, new)

    def price(self, potentials: np.ndarray) -> float:
        """Returns the linear part of the dual at the potentials [K]: <t, v>, the least of it over all t within the bounds."""
        if self.is_fixed:
            return float(self.lower @ potentials)
        return float(self.lower @ np.maximum(potentials, 0) - self.upper @ np.maximum(-potentials, 0))

    def centred(self, potentials: np.ndarray) -> np.ndarray:
        """Returns the potentials [K] with a mean of zero, where a constant that is added to them changes nothing; otherwise as they are."""
        return potentials - potentials.mean() if self.is_fixed else potentials

    def scaled(self, ratio: np.ndarray) -> Target:
        """Returns the target with the share of each cluster, or its bounds, times a factor, float64 [K].

        The factors are divided by one common number where otherwise no shares of sum 1 would be within the bounds.
        """
        ratio = ratio / np.clip(1.0, self.lower @ ratio, self.upper @ ratio)
        return Target(self.lower * ratio, None if self.is_fixed else self.upper * ratio)
