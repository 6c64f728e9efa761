"""Labels of exactly balanced clusters, from the potentials of a Sinkhorn transport: `balanced_labels`.

The argmax of a Sinkhorn plan is only nearly balanced: on a trained network about one row in fifty has to move. The labels that
`balanced_labels` returns maximise the sum of log p_{i, label_i} among all labels whose clusters have the right sizes. That is the
transport without entropy; `shortest_paths.py` solves it, starting from the potentials of the one with entropy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.linear_logits import ComputedLogits, LinearLogits
from sela_tf.transport.placement import present
from sela_tf.transport.rows import Rows
from sela_tf.transport.shards import ALONE, Shards
from sela_tf.transport.shortest_paths import AllowedSizes, solve_exactly
from sela_tf.transport.size_bounds import SizeBound, check_size_bounds, free_bounds
from sela_tf.transport.table import Table

# Up to this many elements the labels are the optimum. Beyond, rows may end up a little below their best cluster, which is much faster.
_EXACT_SIZE = 2**20


class BalancedLabels(NamedTuple):
    """The result of `balanced_labels`: labels of clusters whose sizes are exactly right."""

    labels: np.ndarray
    """The cluster of each row, int64 [N]."""
    sizes: np.ndarray
    """The clusters' sizes, int64 [K]: those asked for, or floor(N/K) and ceil(N/K), or the best within the bounds."""
    rounding_gap: float
    """An upper bound on what the labels lose by the rounding, in mean log p a row, at least 0: no labels of allowed sizes have a mean
    log p that is higher by more. It is the duality gap of the transport without entropy."""
    prices: np.ndarray
    """The potentials of the transport without entropy, float64 [K], in units of log p: each label is, within that gap, the argmax of
    log p + prices. They start the next rounding, and label new rows."""


def balanced_labels(
    log_probs: np.ndarray | tf.Tensor | LinearLogits | Table,
    potentials: np.ndarray | tf.Tensor,
    *,
    lam: float,
    sizes: np.ndarray | None = None,
    known: np.ndarray | None = None,
    size_min: SizeBound = None,
    size_max: SizeBound = None,
    shards: Shards = ALONE,
) -> BalancedLabels:
    """Finds the best labels with exactly balanced clusters, or with clusters of other sizes, or of sizes within bounds.

    They are the optimum, to the precision of float64, if N * K is at most 2**20, and within `rounding_gap` of it beyond. This holds
    for any potentials; good ones make it fast.

    Args:
        log_probs: [N, K], log p(y|x) or logits: a constant added to a row changes nothing. -inf forbids the cluster to the row. Or
            `sela_tf.LinearLogits`, computed anew at each of a few readings and never stored. Or a table of these, as `assign_labels`
            shares it between its transports.
        potentials: [K], those of `sinkhorn` for the same `log_probs` and `lam`, or any others.
        lam: the number that the potentials are divided by to be in units of `log_probs`: the `lam` of `sinkhorn`.
        sizes: integer [K], sum N: the sizes to be met. If None, floor(N/K) or ceil(N/K), whichever is best for each cluster.
        known: integer [N], the cluster of the rows whose label is known and -1 elsewhere. Those rows keep it and count towards their
            cluster's size.
        size_min: the smallest number of rows of a cluster, or K such numbers. With it or `size_max` the sizes are the best within these bounds.
        size_max: the largest number of rows of a cluster, or K such numbers.
        shards: the workers that have a share of the rows each and call this function together. N and `known` are then those of this
            worker's rows, and so are the labels returned; the rest is about all rows.

    Raises:
        ValueError: an argument is not as described, a value is NaN or +inf, or no labels meet the sizes.
    """
    table = log_probs if isinstance(log_probs, Table) else None
    if table is not None:
        log_probs = table.on_host()
    else:
        log_probs = log_probs.checked() if isinstance(log_probs, LinearLogits) else log_probs
        table = Table(log_probs) if present().on_cards else None
        log_probs = ComputedLogits(log_probs) if isinstance(log_probs, LinearLogits) else np.asarray(log_probs)
    if log_probs.dtype.kind != "f" and log_probs.dtype.name != "bfloat16":
        raise ValueError(f"`log_probs` must be floating point. Received: dtype={log_probs.dtype}")
    if log_probs.ndim != 2 or 0 in log_probs.shape:
        raise ValueError(f"`log_probs` must be [N, K] with at least one row and one column. Received: shape {log_probs.shape}")
    num_rows, num_clusters = log_probs.shape
    u = _scaled_potentials(np.asarray(potentials, np.float64), lam, num_clusters)
    known = _checked_known(known, num_rows, num_clusters)
    num_known, num_all, num_free = (
        total.astype(np.int64)
        for total in shards.total(np.bincount(known[known >= 0], minlength=num_clusters), num_rows, (known < 0).sum())
    )
    if size_min is None and size_max is None:
        lower, upper = _size_limits(sizes, num_known, int(num_all))
    elif sizes is not None:
        raise ValueError("`sizes` cannot be given together with `size_min` or `size_max`")
    else:
        lower, upper = free_bounds(*check_size_bounds(size_min, size_max, int(num_all), num_clusters), num_known, int(num_all))
    allowed = AllowedSizes(lower, upper, int(num_free))
    is_small = num_all * num_clusters <= _EXACT_SIZE
    with np.errstate(over="ignore", invalid="ignore"):  # The scan reports such values by name.
        on_cards = None if table is None or is_small else Rows(table, lam=1.0, shards=shards)
        found = solve_exactly(log_probs, u, allowed, known, 1.0 / lam, exact=is_small, shards=shards, on_cards=on_cards)
    if found.num_unplaced:
        raise NotFiniteError(
            "`log_probs` must leave a place for every row where it is above -inf. "
            f"Received: {found.num_unplaced} of {num_all} rows cannot be placed"
        )
    labels = np.where(known >= 0, known, found.labels)
    sizes = shards.total(np.bincount(labels, minlength=num_clusters))[0].astype(np.int64)
    return BalancedLabels(labels, sizes, found.gap / int(num_all), found.u)


def _scaled_potentials(potentials: np.ndarray, lam: float, num_clusters: int) -> np.ndarray:
    """Returns the potentials in units of the log-probabilities, float64 [K].

    Raises:
        ValueError: `lam` or the potentials are out of range.
    """
    if not 0 < lam < np.inf:
        raise ValueError(f"`lam` must be positive and finite. Received: lam={lam}")
    with np.errstate(over="ignore"):
        u = potentials / lam
    if u.shape != (num_clusters,) or not np.isfinite(u).all():
        raise ValueError(
            f"`potentials` must be {num_clusters} finite numbers, one for each cluster, also when divided by lam={lam}. "
            f"Received: shape {potentials.shape}, values {potentials.ravel()[:4]}…"
        )
    return u


def _checked_known(known: np.ndarray | None, num_rows: int, num_clusters: int) -> np.ndarray:
    """Returns the known labels, int64 [N], -1 where a row is free.

    Raises:
        ValueError: `known` is not N integers from -1 to K - 1.
    """
    if known is None:
        return np.full(num_rows, -1)
    known = np.asarray(known)
    if known.shape != (num_rows,) or known.dtype.kind not in "iu":
        raise ValueError(
            f"`known` must be {num_rows} integers, one for each row. Received: shape {known.shape}, dtype={known.dtype}"
        )
    if known.min() < -1 or known.max() >= num_clusters:
        raise ValueError(f"`known` must be between -1 and {num_clusters - 1}. Received: values from {known.min()} to {known.max()}")
    return known.astype(np.int64)


def _size_limits(sizes: np.ndarray | None, num_known: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the largest number of free rows of each cluster, int64 [K] each.

    Args:
        sizes: the sizes asked for, integer [K]; None for floor(N/K) or ceil(N/K).
        num_known: int64 [K], the known labels of each cluster.
        num_rows: N.

    Raises:
        ValueError: `sizes` are not K sizes of sum N, or known labels leave no such sizes.
    """
    num_clusters = len(num_known)
    if sizes is None:
        lower = np.full(num_clusters, num_rows // num_clusters)
        upper = lower + (num_rows % num_clusters > 0)
    else:
        sizes = np.asarray(sizes)
        if sizes.shape != num_known.shape or sizes.dtype.kind not in "iu" or sizes.min() < 0 or sizes.sum() != num_rows:
            raise ValueError(
                f"`sizes` must be {num_clusters} integers, not negative, with sum {num_rows}. Received: "
                f"shape {sizes.shape}, dtype={sizes.dtype}, sum {sizes.sum()}, values {sizes.ravel()[:4]}…"
            )
        lower = upper = sizes.astype(np.int64)
    return free_bounds(lower, upper, num_known, num_rows)
