"""The clusters' shares of the rows, the marginals of the transport: equal, given as numbers, or those of a named prior."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from sela_tf.transport.errors import KnownLabelsError

Marginals = str | Sequence[float] | np.ndarray
"""The clusters' shares: `uniform`, K positive numbers in the clusters' order, or a prior by name.

A prior's parameter may follow its name after a colon, as in `zipf:0.5`. The priors and their usual parameters are:

- `zipf` (1): shares proportional to 1, 1/2, 1/3, …, to the power of the parameter.
- `gaussian` (0.1): shares proportional to quantiles of a normal distribution of mean 1 and this standard deviation (SeLaVi, Asano et al.
  2020, arXiv 2006.13662).

A prior's shares are given out by rank: the largest goes to the cluster of the largest mass under the present network. (SeLaVi's code
gives the largest to the smallest.)
"""

SizeBound = int | Sequence[int] | np.ndarray | None
"""The smallest or the largest number of rows of a cluster, or K such numbers; None for no bound."""

_PARAMETERS = {"zipf": 1.0, "gaussian": 0.1}
# A cluster that its known labels fill is still given this part of a row, because targets have to be positive.
_LEFTOVER = 1e-3
# The smallest quantile that is used: one below 0 is no size.
_SMALLEST_QUANTILE = 0.1


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


def parse_size_bounds(text: str) -> tuple[int | None, int | None]:
    """Returns the smallest and the largest size that "20:500", "20:" or ":500" stand for, None for what is left out or for no text.

    Raises:
        ValueError: the text is none of these, or the first number exceeds the second.
    """
    if not text:
        return None, None
    found = re.fullmatch(r"(\d*):(\d*)", text, re.ASCII)
    bounds = [int(part) if part else None for part in found.groups()] if found else []
    if not found or bounds == [None, None]:
        raise ValueError(
            f"it must be the smallest and the largest number of images of a cluster, as 20:500, 20: or :500. Received: {text!r}"
        )
    smallest, largest = bounds
    if largest is not None and (largest < 1 or (smallest or 0) > largest):
        raise ValueError(f"the largest size must be at least 1, and not below the smallest. Received: {text!r}")
    return smallest, largest


def scaled_size_bounds(text: str, num_rows: int, other_rows: int) -> tuple[int | None, int | None]:
    """Returns the bounds that `parse_size_bounds` reads for `num_rows` rows as those of the same shares of `other_rows`, the smallest rounded
    down and the largest up."""
    smallest, largest = parse_size_bounds(text)
    return (
        None if smallest is None else smallest * other_rows // num_rows,
        None if largest is None else -(-largest * other_rows // num_rows),
    )


def least_equal_shares(text: str, num_rows: int, num_clusters: int) -> np.ndarray:
    """Returns the least equal shares within the bounds that `parse_size_bounds` reads, float64 [K], all of them positive."""
    lower, upper = check_size_bounds(*parse_size_bounds(text), num_rows, num_clusters)
    room = np.cumsum(upper - lower)
    sizes = lower + np.clip(num_rows - lower.sum() - (room - (upper - lower)), 0, upper - lower)
    return np.maximum(sizes, _LEFTOVER) / num_rows


def check_only_bounds(marginals: Marginals) -> None:
    """Checks that shares are not asked for beside bounds of sizes.

    Raises:
        ValueError: they are.
    """
    if not isinstance(marginals, str) or marginals != "uniform":
        raise ValueError(f"`marginals` must be 'uniform' where `size_min` or `size_max` is given. Received: {marginals!r}")


def check_size_bounds(size_min: SizeBound, size_max: SizeBound, num_rows: int, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest numbers of rows of the clusters, int64 [K] each.

    Raises:
        ValueError: a bound is not a whole number or K of them, not negative; or no sizes are within both.
    """
    bounds = []
    for name, value, missing in (("size_min", size_min, 0), ("size_max", size_max, num_rows)):
        bound = np.asarray(missing if value is None else value)
        if bound.dtype.kind not in "iu" or bound.shape not in ((), (num_clusters,)) or bound.min(initial=0) < 0:
            raise ValueError(
                f"`{name}` must be a whole number of rows, not negative, or {num_clusters} such numbers. Received: {value!r}"
            )
        bounds.append(np.broadcast_to(bound, num_clusters).astype(np.int64))
    lower, upper = bounds
    crossed = np.flatnonzero(lower > upper)
    if len(crossed):
        k = int(crossed[0])
        raise ValueError(f"`size_min` must not exceed `size_max`. Received: {lower[k]} and {upper[k]} of cluster {k}")
    if not lower.sum() <= num_rows <= upper.sum():
        raise ValueError(
            f"`size_min` and `size_max` must leave {num_clusters} clusters room for just {num_rows} rows. "
            f"Received: at least {lower.sum()} and at most {upper.sum()} rows in all"
        )
    return lower, upper


def check_marginals(marginals: Marginals, num_clusters: int) -> np.ndarray:
    """Returns the shares, float64 [K], which sum to 1; those of a prior are ordered from the largest to the smallest.

    Raises:
        ValueError: `marginals` are not K positive numbers, or name no prior, or one with a parameter out of range.
    """
    if isinstance(marginals, str):
        return _prior(marginals, num_clusters)
    shares = np.asarray(marginals, np.float64)
    if shares.shape != (num_clusters,) or not np.isfinite(shares).all() or shares.min() <= 0:
        worst = f", smallest {shares.min():g}" if shares.size else ""
        raise ValueError(f"`marginals` must be {num_clusters} positive numbers. Received: shape {shares.shape}{worst}")
    return shares / shares.sum()


def is_prior(marginals: Marginals) -> bool:
    """Returns True for a named prior, whose shares are given out by the clusters' present masses."""
    return isinstance(marginals, str) and marginals != "uniform"


def bounded_target(lower: np.ndarray, upper: np.ndarray, known: np.ndarray | None, num_rows: int) -> Target:
    """Returns the bounds of the clusters' shares of the rows whose label is not known.

    Args:
        lower: int64 [K], the clusters' smallest sizes, rows of known label included.
        upper: int64 [K], their largest sizes.
        known: integers [N], -1 where the label is not known; or None.
        num_rows: N.

    Raises:
        ValueError: known labels leave no sizes within the bounds.
    """
    num_known = np.zeros_like(lower) if known is None else np.bincount(known[known >= 0], minlength=len(lower))
    lower, upper = free_bounds(lower, upper, num_known, num_rows)
    num_free = num_rows - num_known.sum()
    # A cluster that its known labels fill is still given a part of a row: a share of 0 would take a potential of -infinity.
    return Target(lower / num_free, np.maximum(upper, _LEFTOVER) / num_free)


def free_bounds(lower: np.ndarray, upper: np.ndarray, num_known: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest numbers of rows that clusters may get beside those of known label, int64 [K] each.

    Args:
        lower: int64 [K], the clusters' smallest sizes, rows of known label included.
        upper: int64 [K], their largest sizes.
        num_known: int64 [K], the rows of known label.
        num_rows: N.

    Raises:
        ValueError: a cluster has more known labels than its largest size, or the others would be too small.
    """
    full = np.flatnonzero(num_known > upper)
    if len(full):
        raise KnownLabelsError(
            f"`known` must not exceed a cluster's size. Received: {num_known[full[0]]} labels of cluster {full[0]}, "
            f"which has {upper[full[0]]} places ({len(full)} such)"
        )
    needed = int(np.maximum(lower, num_known).sum())
    if needed > num_rows:
        raise KnownLabelsError(
            f"`known` must leave enough rows for the other clusters' smallest sizes. Received: {needed - num_rows} rows more are needed "
            f"than the {num_rows} that there are, because {int((num_known > lower).sum())} clusters have more known labels than their smallest size"
        )
    return np.maximum(lower - num_known, 0), upper - num_known


def shares_and_target(
    marginals: Marginals, known: np.ndarray | None, num_rows: int, num_clusters: int, masses: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clusters' shares of all rows, and their shares of the rows whose label is not known, float64 [K] each, of sum 1.

    Args:
        marginals: the shares asked for, as described at `Marginals`.
        known: integers [N], -1 where the label is not known; or None.
        num_rows: N.
        num_clusters: K.
        masses: a function that returns the clusters' present masses [K]; called only for a prior.

    Raises:
        ValueError: `marginals` are refused by `check_marginals`, or more labels of a cluster are known than its share has room for.
    """
    shares = check_marginals(marginals, num_clusters)
    if is_prior(marginals):
        present = masses()
        ranked = np.empty(num_clusters)
        ranked[np.argsort(-present, kind="stable")] = shares
        shares = ranked
    if known is None:
        return shares, shares
    num_known = np.bincount(known[known >= 0], minlength=num_clusters)
    free = num_rows * shares - num_known
    if free.min() <= -1:
        k = int(free.argmin())
        raise KnownLabelsError(
            f"`known` has {num_known[k]} labels of cluster {k}, whose share by `marginals` is {num_rows * shares[k]:.1f} of {num_rows} rows: "
            "give it a larger share, or fewer labels"
        )
    free = np.maximum(free, _LEFTOVER)
    return shares, free / free.sum()


def rounded_sizes(shares: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns whole sizes int64 [K] of sum `num_rows`: `shares` [K] of the rows, rounded by largest remainder."""
    exact = shares * num_rows
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: num_rows - sizes.sum()]] += 1
    return sizes


def _prior(name: str, num_clusters: int) -> np.ndarray:
    """Returns the shares of a named prior, float64 [K], from the largest to the smallest.

    Raises:
        ValueError: the name or its parameter is not one of those described at `Marginals`.
    """
    if name == "uniform":
        return np.full(num_clusters, 1 / num_clusters)
    kind, colon, text = name.partition(":")
    if kind not in _PARAMETERS:
        raise ValueError(f"`marginals` must be uniform, {', '.join(_PARAMETERS)}, or numbers. Received: {name!r}")
    try:
        parameter = float(text) if colon else _PARAMETERS[kind]
    except ValueError:
        parameter = np.nan
    largest = {"zipf": 10.0, "gaussian": 1.0}[kind]
    if not 0 <= parameter <= largest:
        raise ValueError(f"the parameter of `marginals` {kind!r} must be from 0 to {largest:g}. Received: {name!r}")
    if kind == "zipf":
        shares = np.arange(1, num_clusters + 1) ** -parameter
    else:
        quantiles = [NormalDist().inv_cdf(1 - (k + 0.5) / num_clusters) for k in range(num_clusters)]
        shares = np.maximum(1 + parameter * np.array(quantiles), _SMALLEST_QUANTILE)
    return shares / shares.sum()
