"""The clusters' shares of the rows, the marginals of the transport: equal, given as numbers, or those of a named prior."""

from __future__ import annotations

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

_PARAMETERS = {"zipf": 1.0, "gaussian": 0.1}
LEFTOVER = 1e-3
"""The part of a row that a cluster is still given that its known labels fill, because targets have to be positive."""
# The smallest quantile that is used: one below 0 is no size.
_SMALLEST_QUANTILE = 0.1


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


def shares_and_target(
    marginals: Marginals, num_known: np.ndarray | None, num_rows: int, num_clusters: int, masses: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clusters' shares of all rows, and their shares of the rows whose label is not known, float64 [K] each, of sum 1.

    Args:
        marginals: the shares asked for, as described at `Marginals`.
        num_known: int64 [K], the known labels of each cluster; or None.
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
    if num_known is None:
        return shares, shares
    free = num_rows * shares - num_known
    if free.min() <= -1:
        k = int(free.argmin())
        raise KnownLabelsError(
            f"`known` has {num_known[k]} labels of cluster {k}, whose share by `marginals` is {num_rows * shares[k]:.1f} of {num_rows} rows: "
            "give it a larger share, or fewer labels"
        )
    free = np.maximum(free, LEFTOVER)
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
