"""How large clusters shall be: equal, given, or of a named prior whose largest share goes to the cluster that is largest now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

Marginals = str | Sequence[float] | np.ndarray
"""`uniform`; K positive numbers, in the clusters' order; or a prior by name, with its parameter after a colon if not the usual one:

`zipf` (1): shares as 1, 1/2, 1/3, …, to the power of the parameter.
`gaussian` (0.1): shares as the quantiles of a normal distribution of mean 1 and this standard deviation (SeLaVi, arXiv 2006.13662).

A prior's shares are given out by rank, the largest to the cluster of the largest mass under the network's present opinion. (SeLaVi's
code gives the largest to the smallest.)
"""

_PARAMETERS = {"zipf": 1.0, "gaussian": 0.1}
# Of a row: what a cluster is still given that its known labels fill.
_LEFTOVER = 1e-3


def check_marginals(marginals: Marginals, num_clusters: int) -> np.ndarray:
    """Shares float64 [K] that sum to 1; those of a prior from the largest to the smallest.

    Raises:
        ValueError: not K positive numbers, or an unknown prior or a parameter out of range.
    """
    if isinstance(marginals, str):
        return _prior(marginals, num_clusters)
    shares = np.asarray(marginals, np.float64)
    if shares.shape != (num_clusters,) or not np.isfinite(shares).all() or shares.min() <= 0:
        worst = f", smallest {shares.min():g}" if shares.size else ""
        raise ValueError(f"`marginals` must be {num_clusters} positive numbers. Received: shape {shares.shape}{worst}")
    return shares / shares.sum()


def is_prior(marginals: Marginals) -> bool:
    """Whether it depends on the present masses which cluster gets which share."""
    return isinstance(marginals, str) and marginals != "uniform"


def held_and_target(
    marginals: Marginals, known: np.ndarray | None, num_rows: int, num_clusters: int, masses: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(shares of all rows, shares of the rows whose label is not known), both float64 [K] and of sum 1.

    Args:
        marginals: see `Marginals`.
        known: integers [N], -1 where the label is not known; or None.
        num_rows: N.
        num_clusters: K.
        masses: the clusters' present shares [K], asked for only where a prior needs them.

    Raises:
        ValueError: as `check_marginals`; or more labels are known of a cluster than it has room for.
    """
    shares = check_marginals(marginals, num_clusters)
    if is_prior(marginals):
        present = masses()
        ranked = np.empty(num_clusters)
        ranked[np.argsort(-present, kind="stable")] = shares
        shares = ranked
    if known is None:
        return shares, shares
    held = np.bincount(known[known >= 0], minlength=num_clusters)
    free = num_rows * shares - held
    if free.min() <= -1:
        k = int(free.argmin())
        raise ValueError(
            f"`known` has {held[k]} labels of cluster {k}, whose share by `marginals` is {num_rows * shares[k]:.1f} of {num_rows} rows: "
            "give it a larger share, or fewer labels"
        )
    free = np.maximum(free, _LEFTOVER)
    return shares, free / free.sum()


def rounded_sizes(shares: np.ndarray, num_rows: int) -> np.ndarray:
    """int64 [K], `shares` of `num_rows` rows rounded by largest remainder."""
    exact = shares * num_rows
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: num_rows - sizes.sum()]] += 1
    return sizes


def _prior(name: str, num_clusters: int) -> np.ndarray:
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
        # a quantile below 0 is no size: a tenth of the mean is the smallest
        quantiles = [NormalDist().inv_cdf(1 - (k + 0.5) / num_clusters) for k in range(num_clusters)]
        shares = np.maximum(1 + parameter * np.array(quantiles), 0.1)
    return shares / shares.sum()
