"""The transport without entropy, by successive shortest paths on a few candidates a row.

Any potentials u [K] bound the objective (weak duality): for labels whose clusters have the sizes n_k,

    sum_i log p_{i, label_i}  <=  sum_i max_k (log p_ik + u_k) - sum_k n_k u_k,

with equality if every row has its argmax and every cluster its size. At u = potentials / lam of a Sinkhorn transport the first
holds and the second nearly does. Each round of a search scans the log-probabilities for the candidates of every row (scan.py), and
moves rows along shortest paths from clusters that are too large to those that are too small (exchange.py), until all sizes are right.

Where clusters may have a range of sizes, such as floor(N/K) or ceil(N/K), a cluster is full at its largest size, and tokens that belong to it may
take the places of rows (exchange.py). So the choice of sizes is part of the same transport.

References: Ahuja, Magnanti and Orlin, Network Flows (1993), section 9.7 (successive shortest paths with reduced costs).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sela_tf.transport.exchange import Moves, Pool, resolution
from sela_tf.transport.linear_logits import ComputedLogits
from sela_tf.transport.row_sample import anneal, move_cost, sample_rows
from sela_tf.transport.rows import Rows
from sela_tf.transport.scan import Candidates, scan
from sela_tf.transport.shards import ALONE, Shards

# A row may end up this far below its best cluster where the optimum is not asked for. This takes a fifth of the rounds and costs 1e-5 of
# the objective: a tenth of the temperature of the Sinkhorn plan, and no more than a twentieth of what lies between the best cluster and
# the next in half of the rows.
_SLACK_TEMPERATURES, _SLACK_MARGINS = 0.1, 0.05
# The first cutoff: moves that cost up to 1.5 temperatures are collected, or the cheapest 1.5 for each row; others only where these lead nowhere.
_CUTOFF_TEMPERATURES, _CUTOFF_MOVES = 1.5, 1.5
# If there are more candidates than this for each row, and more than this in all, only some are collected.
_MAX_CANDIDATES, _MANY_CANDIDATES = 4.0, 2**18
# A round goes well if it leaves at most one in so many of the rows that have to move.
_SLOW = 2
# After this number of scans all moves are collected, at any cost.
_PATIENCE = 50
# Potentials are bad if more rows have to move than this share of N and this many sqrt(N K): good ones leave 0.3 sqrt(N K). New ones are
# found on every seventh row, from potentials that are found in the same way, down to 32 rows for each cluster.
_BAD_SHARE, _BAD_ROOTS = 0.05, 0.5
_SUBSAMPLE, _FEW_ROWS = 7, 32
# Distances beyond this need the range of float64.
_FLOAT32_CUTOFF = 1e30


class ExactTransport(NamedTuple):
    """The result of a search for the best labels of given sizes."""

    labels: np.ndarray
    """The clusters of the free rows of this worker, int64 [N]; -1 where the label is known, or where no cluster has a place for the row."""
    u: np.ndarray
    """The dual potentials, float64 [K], in units of the log-probabilities."""
    gap: float
    """The duality gap: an upper bound on what the labels lose against the best ones, summed over the rows."""
    num_unplaced: int
    """The number of rows that no cluster with a free place may take; 0 for a solution."""


class AllowedSizes:
    """The numbers of free rows, of all workers, that clusters may have, from `lower` to `upper`.

    Attributes:
        lower: int64 [K], the smallest sizes.
        upper: int64 [K], the largest sizes; not less.
        num_extras: the number of rows by which all clusters together exceed their smallest sizes.
        has_pool: True if there is a choice of sizes.
        targets: int64 [K], the sizes to be met, tokens included, where there is no pool; [K + 1] with the pool.
        shares: float64 [K], the smallest and the largest shares of the free rows that clusters may get.
    """

    def __init__(self, lower: np.ndarray, upper: np.ndarray, num_free: int) -> None:
        """Takes the limits, int64 [K] each, for `num_free` rows."""
        self.lower, self.upper, self._num_free = lower, np.minimum(upper, num_free), max(1, num_free)
        self.num_extras = int(num_free - lower.sum())
        self.has_pool = 0 < self.num_extras < int((self.upper - lower).sum())
        if self.has_pool:
            self.targets = np.append(self.upper, self.num_extras)
        else:
            self.targets = self.upper if self.num_extras else lower
        self.shares = lower / self._num_free, self.upper / self._num_free

    def price(self, u: np.ndarray) -> float:
        """Returns the least <n, u> over the allowed sizes n, for each free row: what the dual bound subtracts."""
        order = np.argsort(u, kind="stable")
        more = (self.upper - self.lower)[order]
        extras = np.clip(self.num_extras - (np.cumsum(more) - more), 0, more)
        return float(self.lower @ u + extras @ u[order]) / self._num_free

    def with_pool(self, u: np.ndarray) -> np.ndarray:
        """Returns `u` [K], followed by the potential at which the pool takes the tokens of the smallest u, if there is a pool."""
        if not self.has_pool:
            return u
        order = np.argsort(u, kind="stable")
        last = np.searchsorted(np.cumsum((self.upper - self.lower)[order]), self.num_extras)
        return np.append(u, u[order[last]])


def solve_exactly(
    log_probs: np.ndarray | ComputedLogits,
    u: np.ndarray,
    sizes: AllowedSizes,
    known: np.ndarray,
    temperature: float,
    *,
    exact: bool,
    shards: Shards = ALONE,
    on_cards: Rows | None = None,
) -> ExactTransport:
    """Solves the transport without entropy: the labels of the free rows with the largest sum of log p and allowed sizes.

    Args:
        log_probs: [N, K].
        u: float64 [K], the potentials to start from.
        sizes: the allowed sizes.
        known: int64 [N], the label of rows where it is known, -1 where a row is free.
        temperature: 1 / lam of the entropic transport that `u` comes from, the scale of the moves that are needed.
        exact: True for the optimum to the precision of float64; False to leave rows a little short of their best cluster.
        shards: the workers that have a share of the rows each. Each scans its own rows, and makes the moves of all.
        on_cards: the same rows on graphics cards, which then scan them.
    """
    search, number = _Search(log_probs, u, sizes, known, temperature, exact=exact, shards=shards, on_cards=on_cards), 0
    while (found := search.run_round(number)) is None:
        number += 1
    return found


class _Search:
    """The state of a search: potentials, labels, and how widely the next scan looks for candidates.

    Attributes:
        u: float64 [K], or [K + 1] with the pool: the potentials, in units of the log-probabilities.
        labels: int64 [N], the labels of this worker's rows; -1 where there is none yet.
        num_all: the number of rows of all workers.
        pool: the tokens, where clusters have a range of sizes.
        dtype: the dtype of the scan; float64 from where float32 is too coarse.
        slack: the distance from its best cluster that a row may keep.
        cutoff: the distance from its best cluster up to which a cluster is a row's candidate.
        min_cutoff: the smallest cutoff that a scan is made with.
        moves_per_row: the average number of moves that the next larger cutoff is to allow.
        max_candidates: the average number of candidates a row beyond which some are left out.
        restarted: True once the potentials that were given have been replaced.
        num_bad: the number of rows that have to move beyond which potentials are bad.
    """

    def __init__(
        self,
        log_probs: np.ndarray | ComputedLogits,
        u: np.ndarray,
        sizes: AllowedSizes,
        known: np.ndarray,
        temperature: float,
        *,
        exact: bool,
        shards: Shards = ALONE,
        on_cards: Rows | None = None,
    ) -> None:
        """Takes the arguments of `solve_exactly`."""
        self.on_cards = on_cards
        self.log_probs, self.sizes, self.known, self.temperature, self.shards = log_probs, sizes, known, temperature, shards
        self.num_clusters = log_probs.shape[1]
        self.num_all = int(shards.total(len(log_probs))[0])
        self.u = sizes.with_pool(shards.of_first(u))
        self.labels = np.full(len(log_probs), -1)
        self.pool = Pool(sizes.upper - sizes.lower) if sizes.has_pool else None
        self.rng = np.random.default_rng(0)
        self.dtype: type = np.float32 if log_probs.dtype.itemsize <= 4 else np.float64
        self.slack = 0.0
        margin = move_cost(log_probs, np.zeros(self.num_clusters), 0.5, shards=shards)
        if not exact:
            self.slack = min(_SLACK_TEMPERATURES * temperature, _SLACK_MARGINS * margin)
        nearest = move_cost(log_probs, self.u[: self.num_clusters], _CUTOFF_MOVES, self.slack, shards)
        self.cutoff = self.min_cutoff = max(min(_CUTOFF_TEMPERATURES * temperature, nearest), 4 * self.slack)
        self.moves_per_row, self.max_candidates = 0.1, max(_MAX_CANDIDATES, _MANY_CANDIDATES / self.num_all)
        self.restarted = False
        self.num_bad = _BAD_SHARE * self.num_all + (0.0 if exact else _BAD_ROOTS * np.sqrt(self.num_all * self.num_clusters))

    def run_round(self, number: int) -> ExactTransport | None:
        """Runs a round, the `number`-th from 0: a scan and the moves that it allows. Returns None while the search is to go on."""
        self.u = self.u - np.median(self.u)
        self.cutoff = max(self.cutoff, 4 * resolution(np.ptp(self.u))) if number < _PATIENCE else np.inf
        own = self.shards.run(self._scan)
        candidates, labels, part = self._joined(own)
        eps = 8 * float(np.finfo(self.dtype).eps)
        # Rounding in the scan may have hidden candidates that are this close to the cutoff.
        doubt = eps * (candidates.largest + float(np.abs(self.u).max()))
        max_drift = self.cutoff * (1 - eps) - doubt
        if self.dtype == np.float32 and not (max_drift >= self.cutoff / 2 and (candidates.complete or doubt <= self.slack)):
            self.dtype = np.float64
            return None
        moves = Moves(candidates.counts, candidates.column, candidates.value, labels, self.u[: self.num_clusters], self.slack)
        self.labels[own.rows] = moves.label[part]
        excess = self._excess()
        if self._has_bad_potentials(excess, candidates.complete or number > 0):
            self._restart()
            return None
        before, too_many = self.u, excess[excess > 0].sum()
        self.u, moved = moves.balance(
            self.u, excess, self.slack, max(max_drift, 0.0), self.cutoff / 8, candidates.complete, self.pool
        )
        self.labels[own.rows] = moves.label[part]
        if not excess.any() and (candidates.complete or (self.u == before).all()):
            gap = float(moves.shortfalls().sum()) + self._price_of_sizes() + (0.0 if candidates.complete else self.num_all * doubt)
            return self._result(gap, 0)
        # The rows that are missing now have no place at all, or no moves can make one.
        if excess.any() and (not (excess > 0).any() or (self.cutoff == np.inf and candidates.complete)):
            return self._result(np.inf, int(-excess[excess < 0].sum()))
        self._adapt(number, moved and excess[excess > 0].sum() <= too_many / _SLOW, candidates.complete)
        return None

    def _scan(self) -> Candidates:
        """Returns the candidates within the cutoff, and labels the rows that have only one."""
        if self.cutoff > _FLOAT32_CUTOFF:
            self.dtype = np.float64
        u = self.u[: self.num_clusters]
        limits = self.known, self.labels, self.max_candidates, self.dtype, self.rng
        return scan(self.log_probs, u, self.cutoff, self.slack, *limits, self.on_cards)

    def _joined(self, own: Candidates) -> tuple[Candidates, np.ndarray, slice]:
        """Returns the candidates of all workers, but for the rows of the others; the labels of their rows; and which of these are its own."""
        labels, about = self.labels[own.rows], np.array([[len(own.rows), own.complete, own.largest]])
        counts, column, value, labels, about = self.shards.joined(own.counts, own.column, own.value, labels, about)
        number, complete, largest = about.T
        first = int(number[: self.shards.index].sum())
        joined = Candidates(own.rows, counts, column, value, bool(complete.all()), float(largest.max()))
        return joined, labels, slice(first, first + len(own.rows))

    def _excess(self) -> np.ndarray:
        """Returns the rows and tokens that each cluster, and the pool, has beyond its target, int64 [K] or [K + 1]; tokens are settled."""
        own = np.bincount(self.labels[self.labels >= 0], minlength=self.num_clusters)
        sizes = self.shards.total(own)[0].astype(np.int64)
        if self.pool is None:
            return sizes - self.sizes.targets
        self.pool.settle(self.u, self.sizes.upper - sizes)
        inside = self.pool.inside
        return np.append(sizes + inside, (self.pool.tokens - inside).sum()) - self.sizes.targets

    def _price_of_sizes(self) -> float:
        """Returns what the present sizes cost at the present potentials beyond the cheapest that are allowed, at least 0."""
        if self.pool is None:
            return 0.0
        gain = self.u[:-1] - self.u[-1]
        return float(self.pool.inside @ np.maximum(-gain, 0.0) + (self.pool.tokens - self.pool.inside) @ np.maximum(gain, 0.0))

    def _has_bad_potentials(self, excess: np.ndarray, trusted: bool) -> bool:
        """Returns True, once in a search, if new potentials are quicker than moving all rows that have to move.

        Args:
            excess: int64 [K] or [K + 1], rows that clusters have beyond their target.
            trusted: True if the excess is worth a judgement: no candidates were left out, or this is not the first round.
        """
        to_move = excess[excess > 0].sum()
        if self.restarted or not to_move:
            return False
        return bool((to_move > self.num_bad and trusted) or resolution(np.ptp(self.u)) > 1e-9 * self.cutoff)

    def _restart(self) -> None:
        """Starts again from potentials that owe nothing to those given."""
        self.restarted = True
        found = _potentials_from_nothing(self.log_probs, self.sizes, self.known, self.temperature, self.shards)
        self.u = self.sizes.with_pool(self.shards.of_first(found))
        self.labels[:] = -1

    def _adapt(self, number: int, goes_well: bool, complete: bool) -> None:
        """Sets how widely the next scan looks: nearer where most rows moved, otherwise farther and with fewer candidates left out."""
        if goes_well:
            self.cutoff, self.moves_per_row = max(self.cutoff / 4, self.min_cutoff), max(self.moves_per_row / 4, 0.1)
        else:
            self.moves_per_row *= 4
            # Few of these may be left out: the paths that they open may be far cheaper than those that remain.
            self.max_candidates = max(self.max_candidates, 4 * self.moves_per_row)
            needed = move_cost(self.log_probs, self.u[: self.num_clusters], self.moves_per_row, self.slack, self.shards)
            self.cutoff = max(4 * self.cutoff, needed)
        if not complete and (self.cutoff == np.inf or number % 4 == 3):
            self.max_candidates *= 2

    def _result(self, gap: float, num_unplaced: int) -> ExactTransport:
        """Returns the present labels and potentials, without the pool's."""
        return ExactTransport(self.labels, self.u[: self.num_clusters], gap, num_unplaced)


def _potentials_from_nothing(
    log_probs: np.ndarray | ComputedLogits, sizes: AllowedSizes, known: np.ndarray, temperature: float, shards: Shards
) -> np.ndarray:
    """Returns potentials float64 [K] near the solution, found on a share of the rows; zeros if these give the better dual bound."""
    num_clusters = len(sizes.lower)
    zeros = np.zeros(num_clusters)
    if shards.total(len(log_probs))[0] < _FEW_ROWS * num_clusters:
        u = anneal(sample_rows(log_probs, max(2**18 // num_clusters, 2 * num_clusters), shards), *sizes.shares, temperature)
    else:
        rows, known = log_probs[::_SUBSAMPLE], known[::_SUBSAMPLE]
        num_free = int(shards.total((known < 0).sum())[0])
        lower, upper = (np.floor(shares * num_free).astype(np.int64) for shares in sizes.shares)
        allowed = AllowedSizes(lower, upper + 1, num_free)
        u = solve_exactly(rows, zeros.copy(), allowed, known, temperature, exact=False, shards=shards).u
    # Magnitudes of 1e30 that stand for -inf may have led astray.
    sample = sample_rows(log_probs, 512, shards)
    return min((u, zeros), key=lambda u: (sample + u).max(axis=1).sum() - len(sample) * (sizes.price(u) - resolution(np.ptp(u))))
