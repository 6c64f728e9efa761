"""Estimates from a sample of the rows, for the rounding: the cost of a move, and potentials by annealing."""

from __future__ import annotations

import numpy as np

from sela_tf.transport.linear_logits import ComputedLogits
from sela_tf.transport.shards import ALONE, Shards

# The annealing starts at most at this many times the 25 % quantile of the costs: hotter plans all look the same.
_HOTTEST_QUANTILES = 100
# Shares and masses are kept above these, so that their logarithms are finite.
_SMALLEST_SHARE, _SMALLEST_MASS = 1e-9, 1e-30


def sample_rows(log_probs: np.ndarray | ComputedLogits, num_rows: int, shards: Shards = ALONE) -> np.ndarray:
    """Returns evenly spaced rows of all workers, float64 [n, K], n about `num_rows`, without those that are nowhere finite."""
    num_all = int(shards.total(len(log_probs))[0])
    (sample,) = shards.joined(log_probs[:: -(-num_all // num_rows)].astype(np.float64))
    return sample[np.isfinite(sample.max(axis=1))]


def move_cost(
    log_probs: np.ndarray | ComputedLogits, u: np.ndarray, moves_per_row: float, slack: float = 0.0, shards: Shards = ALONE
) -> float:
    """Estimates the cost below which there are `moves_per_row` moves for each row, on average.

    Args:
        log_probs: [N, K].
        u: float64 [K], the potentials in units of `log_probs`.
        moves_per_row: the average number of moves that are to be cheaper.
        slack: moves that cost no more than this are not counted.
        shards: the workers that have a share of the rows each.

    Returns:
        A cost in units of `log_probs`; infinity where there are fewer moves than asked for.
    """
    scores = sample_rows(log_probs, max(64, min(512, 2**17 // len(u))), shards) + u
    cost = (scores.max(axis=1, keepdims=True) - scores).ravel()
    cost, rank = cost[cost > slack], int(moves_per_row * len(scores))
    return float(np.partition(cost, rank)[rank]) if rank < len(cost) else np.inf


def anneal(sample: np.ndarray, lower: np.ndarray, upper: np.ndarray, temperature: float) -> np.ndarray:
    """Returns potentials float64 [K] of an entropic transport, by one Sinkhorn iteration at each of many falling temperatures.

    Args:
        sample: float64 [n, K], log-probabilities; each row has a finite value.
        lower: float64 [K], the clusters' smallest shares of the rows.
        upper: float64 [K], their largest shares.
        temperature: the last temperature, in units of `sample`.
    """
    sample = sample - sample.max(axis=1, keepdims=True)
    costs = -sample[(sample < 0) & (sample > -np.inf)]
    hottest = temperature
    if len(costs):
        hottest = max(temperature, min(costs.max(), _HOTTEST_QUANTILES * np.quantile(costs, 0.25, method="lower")))
    u, least, most = np.zeros(len(lower)), *(np.log(np.maximum(shares, _SMALLEST_SHARE)) for shares in (lower, upper))
    for heat in np.geomspace(hottest, temperature, int(20 + 3 * np.log(hottest / temperature))) if len(sample) else ():
        plan = sample + u
        plan -= plan.max(axis=1, keepdims=True)
        np.exp(plan / heat, out=plan)
        mass = (1 / plan.sum(axis=1)) @ plan / len(plan)
        # A cluster's potential is 0 where its share is allowed without one.
        unpriced = np.log(np.maximum(mass, _SMALLEST_MASS)) - u / heat
        u = heat * (np.clip(unpriced, least, most) - unpriced)
    return u
