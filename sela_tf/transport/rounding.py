"""Labels of exactly balanced clusters: the transport without entropy, solved from the potentials of the one with.

The argmax of a Sinkhorn plan is only nearly balanced; about one row in fifty has to move, at the least cost. Maximise the sum of
log p_{i, label_i} over labels whose clusters have the sizes n_k. For any u [K], by weak duality,

    sum_i log p_{i, label_i}  <=  sum_i max_k (log p_ik + u_k) - sum_k n_k u_k,

with equality if every row has its argmax and every cluster its size. At u = potentials / lam the first holds and the second
nearly does. Successive shortest paths keep the first and mend the second: moving row i from its cluster a to b costs
r_ib = (log p_ia + u_a) - (log p_ib + u_b) >= 0, and with d_k the length of the shortest path of moves from an over-full cluster
to k, raising u_k by min(d_k, D) keeps every r >= 0 and makes the paths to all under-full clusters within D free. A maximum flow
over the free moves then uses as many of them as fit.

Where either floor(N/K) or ceil(N/K) will do there is one more cluster, the pool, and a token for every cluster, which is either in
the pool or fills a place in its cluster: all clusters want ceil(N/K), and the pool wants one for each that is to get it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.exchange import Moves, resolution
from sela_tf.transport.linear_logits import ComputedLogits, LinearLogits
from sela_tf.transport.scan import scan

# Up to so many elements the labels are the optimum. Beyond, a row may end up this far below its best cluster, which takes a fifth of
# the rounds and costs 1e-5 of the objective: 0.1/lam, a tenth of the temperature of the Sinkhorn plan, and no more than a twentieth
# of what lies between the best cluster and the next in half of the rows.
_EXACT_SIZE = 2**20
_SLACK_TEMPERATURES, _SLACK_MARGINS = 0.1, 0.05
# The horizon: moves that cost up to 1.5/lam are collected first, or the cheapest 1.5 for each row; others only if need be.
_HORIZON_TEMPERATURES, _HORIZON_CHOICES = 1.5, 1.5
# Of more choices than this for each row, and in all, only some are collected.
_MAX_CHOICES, _MANY_CHOICES = 4.0, 2**18
# Scans after which everything is collected, whatever it takes.
_PATIENCE = 50
# Potentials are bad if more rows have to move than this share of N and this many sqrt(N K): good ones leave 0.3 sqrt(N K). They are
# mended on every seventh row, from potentials mended likewise, down to 32 rows for each cluster.
_BAD_SHARE, _BAD_ROOTS = 0.05, 0.5
_SUBSAMPLE, _FEW_ROWS = 7, 32


class BalancedLabels(NamedTuple):
    """What `balanced_labels` found."""

    labels: np.ndarray
    """int64 [N]."""
    sizes: np.ndarray
    """int64 [K], the clusters' sizes: as asked for, without exception."""
    gap: float
    """At least 0: no labels with allowed sizes have a mean log p that is higher by more than this."""


def balanced_labels(
    log_probs: np.ndarray | tf.Tensor | LinearLogits,
    potentials: np.ndarray | tf.Tensor,
    *,
    lam: float,
    sizes: np.ndarray | None = None,
    held: np.ndarray | None = None,
) -> BalancedLabels:
    """The best labels with exactly balanced clusters.

    They are the optimum, to the precision of float64, if N * K is at most 2**20, and within `gap` of it beyond, whatever the
    potentials are: good ones make it fast.

    Args:
        log_probs: [N, K], log p(y|x) or logits: a constant added to a row changes nothing. -inf forbids the cluster to the row. Or
            `sela_tf.LinearLogits`, computed anew at each of some ten readings and never stored.
        potentials: [K], those of `sinkhorn` for the same `log_probs` and `lam`, or any others.
        lam: what the potentials are to be divided by to be in units of `log_probs`.
        sizes: integer [K], sum N: the sizes to be met. If None, floor(N/K) or ceil(N/K), whichever is best for each cluster.
        held: integer [N]: the cluster that a row has to stay in, whose size it counts towards, or -1.

    Raises:
        ValueError: an argument is not as described, a value is NaN or +inf, or no labels meet the sizes.
    """
    log_probs = ComputedLogits(log_probs.checked()) if isinstance(log_probs, LinearLogits) else np.asarray(log_probs)
    potentials = np.asarray(potentials, np.float64)
    if log_probs.dtype.kind != "f" and log_probs.dtype.name != "bfloat16":
        raise ValueError(f"`log_probs` must be floating point. Received: dtype={log_probs.dtype}")
    if log_probs.ndim != 2 or 0 in log_probs.shape:
        raise ValueError(f"`log_probs` must be [N, K] with at least one row and one column. Received: shape {log_probs.shape}")
    num_rows, num_clusters = log_probs.shape
    if not 0 < lam < np.inf:
        raise ValueError(f"`lam` must be positive and finite. Received: lam={lam}")
    with np.errstate(over="ignore"):
        u = potentials / lam
    if u.shape != (num_clusters,) or not np.isfinite(u).all():
        raise ValueError(
            f"`potentials` must be {num_clusters} finite numbers, one for each cluster, also when divided by lam={lam}. "
            f"Received: shape {potentials.shape}, values {potentials.ravel()[:4]}…"
        )
    held = _as_held(held, num_rows, num_clusters)
    lower, upper = _bounds(sizes, np.bincount(held[held >= 0], minlength=num_clusters), num_rows)
    exact = log_probs.size <= _EXACT_SIZE
    with np.errstate(over="ignore", invalid="ignore"):  # the scan sees to it
        labels, _, gap, missing = _transport(log_probs, u, lower, upper, held, 1.0 / lam, exact=exact)
    if missing:
        raise ValueError(
            f"`log_probs` must leave a place for every row where it is above -inf. Received: {missing} of {num_rows} rows cannot be placed"
        )
    labels = np.where(held >= 0, held, labels)
    return BalancedLabels(labels, np.bincount(labels, minlength=num_clusters), gap / num_rows)


def _as_held(held: np.ndarray | None, num_rows: int, num_clusters: int) -> np.ndarray:
    """int64 [N], -1 where a row is free."""
    if held is None:
        return np.full(num_rows, -1)
    held = np.asarray(held)
    if held.shape != (num_rows,) or held.dtype.kind not in "iu":
        raise ValueError(f"`held` must be {num_rows} integers, one for each row. Received: shape {held.shape}, dtype={held.dtype}")
    if held.min() < -1 or held.max() >= num_clusters:
        raise ValueError(f"`held` must be between -1 and {num_clusters - 1}. Received: values from {held.min()} to {held.max()}")
    return held.astype(np.int64)


def _bounds(sizes: np.ndarray | None, held: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest number of free rows, int64 [K] each, for clusters that have so many `held` ones."""
    num_clusters = len(held)
    if sizes is None:
        lower = np.full(num_clusters, num_rows // num_clusters)
        upper = lower + (num_rows % num_clusters > 0)
        lower = np.clip(held, lower, upper)
    else:
        sizes = np.asarray(sizes)
        if sizes.shape != held.shape or sizes.dtype.kind not in "iu" or sizes.min() < 0 or sizes.sum() != num_rows:
            raise ValueError(
                f"`sizes` must be {num_clusters} integers, not negative, with sum {num_rows}. Received: "
                f"shape {sizes.shape}, dtype={sizes.dtype}, sum {sizes.sum()}, values {sizes.ravel()[:4]}…"
            )
        lower = upper = sizes.astype(np.int64)
    full = np.flatnonzero(held > upper)
    if len(full):
        raise ValueError(
            f"`held` must not exceed a cluster's size. Received: {held[full[0]]} rows held in cluster {full[0]}, "
            f"which has {upper[full[0]]} places ({len(full)} such)"
        )
    if lower.sum() > num_rows:
        raise ValueError(
            f"`held` must leave all but {num_rows % num_clusters} clusters at a size of {upper[0] - 1}. "
            f"Received: {upper[0]} rows held in {int((held == upper).sum())} clusters"
        )
    return lower - held, upper - held


def _transport(
    log_probs: np.ndarray | ComputedLogits,
    u: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    held: np.ndarray,
    temperature: float,
    *,
    exact: bool,
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """(labels [N] of the free rows, u [K], the gap summed over the rows, how many rows have no place)."""
    num_rows, num_clusters = log_probs.shape
    tokens, extras = np.flatnonzero(upper > lower), int((held < 0).sum() - lower.sum())
    free = max(1, (held < 0).sum())
    shares = (lower + (upper > lower) * (extras / max(1, len(tokens)))) / free
    flexible = tokens
    if 0 < extras < len(tokens):
        targets = np.append(upper, extras)
    else:
        targets, tokens = upper if extras else lower, tokens[:0]
    pool = np.full(len(tokens), num_clusters)

    def price(u: np.ndarray) -> float:
        """The least <n, u> over the allowed sizes n, for each free row: what a bound subtracts."""
        return float(lower @ u + np.sort(u[flexible])[:extras].sum()) / free

    def with_pool(u: np.ndarray) -> np.ndarray:
        """The pool takes the `extras` tokens of the smallest u."""
        return np.append(u, np.partition(u[tokens], extras - 1)[extras - 1]) if len(tokens) else u

    u, labels, rng = with_pool(u), np.full(num_rows + len(tokens), -1), np.random.default_rng(0)
    dtype = np.float32 if log_probs.dtype.itemsize <= 4 else np.float64
    margin = _cost(log_probs, np.zeros(num_clusters), 0.5)
    slack = 0.0 if exact else min(_SLACK_TEMPERATURES * temperature, _SLACK_MARGINS * margin)
    horizon = min(_HORIZON_TEMPERATURES * temperature, _cost(log_probs, u[:num_clusters], _HORIZON_CHOICES, slack))
    least = horizon = max(horizon, 4 * slack)
    choices, max_choices, mended, complete = 0.1, max(_MAX_CHOICES, _MANY_CHOICES / num_rows), False, True
    bad = _BAD_SHARE * num_rows + (0.0 if exact else _BAD_ROOTS * np.sqrt(log_probs.size))
    for attempt in itertools.count():
        u -= np.median(u)
        horizon = max(horizon, 4 * resolution(np.ptp(u))) if attempt < _PATIENCE else np.inf
        dtype = np.float64 if horizon > 1e30 else dtype
        row, column, value, complete, largest = scan(
            log_probs, u[:num_clusters], horizon, slack, held, labels[:num_rows], max_choices, dtype, rng
        )
        # What the scan's rounding may have hidden is not relied on.
        eps = 8 * float(np.finfo(dtype).eps)
        doubt = eps * (largest + float(np.abs(u).max()))
        reach = horizon * (1 - eps) - doubt
        if dtype == np.float32 and not (reach >= horizon / 2 and (complete or doubt <= slack)):
            dtype = np.float64
            continue
        moves = Moves(
            np.concatenate([row, np.repeat(num_rows + np.arange(len(tokens)), 2)]),
            np.concatenate([column, np.stack([tokens, pool], axis=1).ravel()]),
            np.concatenate([value, np.zeros(2 * len(tokens))]),
            labels,
            u,
            slack,
        )
        excess = np.bincount(labels[labels >= 0], minlength=len(targets)) - targets
        wrong = excess[excess > 0].sum()
        if not mended and wrong and ((wrong > bad and (complete or attempt)) or resolution(np.ptp(u)) > 1e-9 * horizon):
            mended, u = True, with_pool(_mend(log_probs, shares, held, temperature, price))
            labels[:] = -1
            continue
        before = u
        u, progress = moves.balance(u, excess, slack, max(reach, 0.0), horizon / 8, complete)
        labels[moves.rows] = moves.label
        if not excess.any() and (complete or (u == before).all()):
            gap, missing = float(moves.shortfalls().sum()) + (0.0 if complete else num_rows * doubt), 0
            break
        # What is missing now belongs to rows with no place at all, or cannot be had by any moves.
        if excess.any() and (not (excess > 0).any() or (horizon == np.inf and complete)):
            gap, missing = np.inf, int(-excess[excess < 0].sum())
            break
        if progress:
            horizon, choices = max(horizon / 4, least), max(choices / 4, 0.1)
        else:
            choices *= 4  # of which few are to be left out: what they lead to may be far cheaper than what remains
            max_choices = max(max_choices, 4 * choices)
            horizon = max(4 * horizon, _cost(log_probs, u[:num_clusters], choices, slack))
        if not complete and (horizon == np.inf or attempt % 4 == 3):
            max_choices *= 2
    return labels[:num_rows], u[:num_clusters], gap, missing


def _mend(
    log_probs: np.ndarray | ComputedLogits,
    shares: np.ndarray,
    held: np.ndarray,
    temperature: float,
    price: Callable[[np.ndarray], float],
) -> np.ndarray:
    """Potentials [K] from nothing, for clusters that are to get `shares` [K] of the free rows, or about that: `price` is exact."""
    zeros, few = np.zeros(len(shares)), len(log_probs) < _FEW_ROWS * len(shares)
    if few:
        u = _anneal(_sample(log_probs, max(2**18 // len(shares), 2 * len(shares))), shares, temperature)
    else:
        rows, held = log_probs[::_SUBSAMPLE], held[::_SUBSAMPLE]
        lower = np.floor(shares * (held < 0).sum()).astype(np.int64)
        u = _transport(rows, zeros.copy(), lower, lower + 1, held, temperature, exact=False)[1]
    sample = _sample(log_probs, 512)  # magnitudes of 1e30 that stand for -inf may have led astray: the lower bound wins
    return min((u, zeros), key=lambda u: (sample + u).max(axis=1).sum() - len(sample) * (price(u) - resolution(np.ptp(u))))


def _anneal(sample: np.ndarray, shares: np.ndarray, temperature: float) -> np.ndarray:
    """Potentials [K] by a Sinkhorn iteration at each of many temperatures, down to `temperature`."""
    sample = sample - sample.max(axis=1, keepdims=True)
    losses = -sample[(sample < 0) & (sample > -np.inf)]
    hottest = max(temperature, min(losses.max(), 100 * np.quantile(losses, 0.25, method="lower"))) if len(losses) else temperature
    u, log_shares = np.zeros(len(shares)), np.log(np.maximum(shares, 1e-9))
    for heat in np.geomspace(hottest, temperature, int(20 + 3 * np.log(hottest / temperature))) if len(sample) else ():
        plan = sample + u
        plan -= plan.max(axis=1, keepdims=True)
        np.exp(plan / heat, out=plan)
        mass = (1 / plan.sum(axis=1)) @ plan / len(plan)
        u += heat * (log_shares - np.log(np.maximum(mass, 1e-30)))
    return u


def _sample(log_probs: np.ndarray | ComputedLogits, num_rows: int) -> np.ndarray:
    """float64 [n, K]: about so many of the rows that have a finite value."""
    sample = log_probs[:: -(-len(log_probs) // num_rows)].astype(np.float64)
    return sample[np.isfinite(sample.max(axis=1))]


def _cost(log_probs: np.ndarray | ComputedLogits, u: np.ndarray, choices: float, slack: float = 0.0) -> float:
    """What a move costs at most if there are to be `choices` for each row, besides those that cost no more than `slack`."""
    scores = _sample(log_probs, max(64, min(512, 2**17 // len(u)))) + u
    cost = (scores.max(axis=1, keepdims=True) - scores).ravel()
    cost, rank = cost[cost > slack], int(choices * len(scores))
    return float(np.partition(cost, rank)[rank]) if rank < len(cost) else np.inf
