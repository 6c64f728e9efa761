"""Bounds of the clusters' sizes: as text, as numbers of rows, and as a target of the transport."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sela_tf.transport.errors import KnownLabelsError
from sela_tf.transport.marginals import LEFTOVER, Marginals
from sela_tf.transport.target import Target

SizeBound = int | Sequence[int] | np.ndarray | None
"""The smallest or the largest number of rows of a cluster, or K such numbers; None for no bound."""


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
    return np.maximum(sizes, LEFTOVER) / num_rows


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
        bounds.append(np.broadcast_to(bound, num_clusters))
    lower, upper = bounds
    crossed = np.flatnonzero(lower > upper)
    if len(crossed):
        k = int(crossed[0])
        raise ValueError(f"`size_min` must not exceed `size_max`. Received: {lower[k]} and {upper[k]} of cluster {k}")
    # Of sizes beyond the number of rows no sum can overflow.
    lower, upper = (np.minimum(bound, num_rows + 1).astype(np.int64) for bound in bounds)
    if not lower.sum() <= num_rows <= upper.sum():
        raise ValueError(
            f"`size_min` and `size_max` must leave {num_clusters} clusters room for just {num_rows} rows. "
            f"Received: at least {lower.sum()} and at most {upper.sum()} rows in all"
        )
    return lower, upper


def bounded_target(lower: np.ndarray, upper: np.ndarray, num_known: np.ndarray | None, num_rows: int) -> Target:
    """Returns the bounds of the clusters' shares of the rows whose label is not known.

    Args:
        lower: int64 [K], the clusters' smallest sizes, rows of known label included.
        upper: int64 [K], their largest sizes.
        num_known: int64 [K], the known labels of each cluster; or None.
        num_rows: N.

    Raises:
        ValueError: known labels leave no sizes within the bounds.
    """
    num_known = np.zeros_like(lower) if num_known is None else num_known
    lower, upper = free_bounds(lower, upper, num_known, num_rows)
    num_free = num_rows - num_known.sum()
    # A cluster that its known labels fill is still given a part of a row: a share of 0 would take a potential of -infinity.
    return Target(lower / num_free, np.maximum(upper, LEFTOVER) / num_free)


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
