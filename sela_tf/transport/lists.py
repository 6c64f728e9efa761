"""The making of candidate lists: `ListMaker`, which chooses how near the top of its row a candidate has to be, and of which rows lists are made.

Lists of all rows are the best: their marginals are those of the rows. Where memory is short they reach less far, and at last are made of a share of
the rows, spread evenly. Where the share's clusters have the masses s_k and those of all rows are m_k, the share is to reach t_k s_k / m_k. At
the solution m = t, so that the share then is where it should be: only the way there depends on which rows are in the share.
Near the solution potentials have not far to go. Then lists of the tops of all rows serve, whose target is found in the same way: they
lack a part of each row that hardly changes any more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sela_tf.transport.candidates import BYTES_PER_CANDIDATE, BYTES_PER_ROW, MAX_PER_ROW, Candidates
from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.measurement import Measurement
from sela_tf.transport.rows import Rows
from sela_tf.transport.target import Target

# Lists have at least this number of candidates a row, on average. For the usual cutoff they may have more: up to `MAX_PER_ROW`, and up to
# this share of the row.
_MIN_PER_ROW, _MAX_SHARE_OF_ROW = 5, 1 / 32
# A larger cutoff lets potentials move farther before lists are made anew, but each step takes longer. Below the smallest cutoff lists
# would have to be made anew before they have led anywhere.
_MIN_CUTOFF, USUAL_CUTOFF = 20.0, 60.0
# The same for lists of a share of the rows. They are made anew in any case, so that more rows are better than a larger cutoff.
_USUAL_SHARE_CUTOFF = 30.0
# A share has at least this number of rows for each cluster: with fewer it says too little about the others.
_ROWS_PER_CLUSTER = 16
# Masses of a share that differ by more than this factor are chance.
_LARGEST_RATIO = 4.0
# Lists of the tops of all rows are made from this error on.
_ERROR_FOR_TOPS = 0.2
MOST_MISSED = 0.02
"""The largest share of the rows that lists of their tops may lack. A solution on such lists lowers the error by this factor or more."""
_ROWS_TO_LOOK_AT = 256
# Rows that are computed from features, because they are too large to be stored, have no more candidates in all: half a gigabyte.
_MOST_OF_FEATURES = 2**29 // BYTES_PER_CANDIDATE


class Lists(NamedTuple):
    """Candidate lists, and what is to be reached on them."""

    candidates: Candidates
    """The candidates of all rows that count, or of a share of them."""
    target: Target
    """The shares, or their bounds, that the clusters are to have on these lists."""
    are_whole: bool
    """True for lists of all rows, with all that matters in them."""
    are_of_share: bool
    """True for lists of a share of the rows."""

    def error(self, v: np.ndarray) -> float:
        """Returns the L1 error of the marginals of these lists at the potentials v, float64 [K]."""
        with np.errstate(divide="ignore"):
            return self.target.error(v, np.log(self.candidates.evaluate(v).mass))


class ListMaker:
    """Makes candidate lists in exact passes over N rows.

    Args:
        rows: the rows.
        target: the clusters' shares, or their bounds.
        memory_limit: the bytes that lists may take on a worker; None for no limit, or half a gigabyte where rows are computed from features.
    """

    def __init__(self, rows: Rows, target: Target, memory_limit: float | None):
        self._rows, self._target = rows, target
        self._most = None if memory_limit is None else int(memory_limit / BYTES_PER_CANDIDATE)
        if self._most is None and rows.is_computed:
            self._most = _MOST_OF_FEATURES
        self._share: Rows | None = None

    def measure_and_list(self, v: np.ndarray, reach: float, error: float) -> tuple[Measurement, Lists] | None:
        """Makes an exact pass and lists candidates; None, before the pass, if rows are not sharp enough for lists.

        Args:
            v: the potentials, float64 [K].
            reach: how many times as far as usual lists are to reach.
            error: the L1 error of the marginals at the best potentials until now; infinity if there are none.
        """
        look, rows = _look_at(self._rows, v), self._rows
        cutoff = None if look is None else look.cutoff(reach * USUAL_CUTOFF)
        if look is None or cutoff is None:
            return None
        if self._most is not None:
            affordable = look.distance_of(max(0.0, self._most / rows.num_most - BYTES_PER_ROW / BYTES_PER_CANDIDATE))
            if affordable < _MIN_CUTOFF:
                if error <= _ERROR_FOR_TOPS and look.missed(affordable) <= MOST_MISSED:
                    return self._list_tops(v, affordable)
                cutoff = min(cutoff, reach * _USUAL_SHARE_CUTOFF)
                # The rows of a share are copied.
                entries_per_row = max(1.0, look.entries_per_row(cutoff)) + rows.bytes_per_row / BYTES_PER_CANDIDATE
                number = int(self._most / entries_per_row * rows.num_all / rows.num_most)
                is_enough = number * rows.num_counted / rows.num_all >= _ROWS_PER_CLUSTER * rows.num_clusters
                return self._list_share(v, cutoff, number) if is_enough else None
            cutoff = min(cutoff, affordable)
        return self._list_all(v, cutoff)

    def _list_all(self, v: np.ndarray, cutoff: float) -> tuple[Measurement, Lists]:
        """Lists the candidates of all rows."""
        measured, near = self._rows.measure_and_list(v, cutoff)
        candidates = Candidates(near, self._rows.that_count(measured.log_rows), v, cutoff, self._rows.shards)
        return measured, Lists(candidates, self._target, are_whole=True, are_of_share=False)

    def _list_tops(self, v: np.ndarray, cutoff: float) -> tuple[Measurement, Lists]:
        """Lists the candidates of all rows at a cutoff at which something is missing, as are whole rows that are flat."""
        measured, near = self._rows.measure_and_list(v, cutoff)
        # Neither labels nor a dual are taken from such lists: these need the rows' log-sum-exp.
        candidates = Candidates(near, np.zeros(0), v, cutoff, self._rows.shards)
        with np.errstate(divide="ignore"):
            target = self._scaled_target(np.log(candidates.evaluate(v).mass), measured)
        return measured, Lists(candidates, target, are_whole=False, are_of_share=False)

    def _list_share(self, v: np.ndarray, cutoff: float, number: int) -> tuple[Measurement, Lists] | None:
        """Lists the candidates of some rows, about `number`; None if a value among them is not finite."""
        if self._share is None or self._share.num_all > number:
            self._share = self._rows.sample(number)
        share = self._share
        try:
            there, near = share.measure_and_list(v, cutoff)
        except NotFiniteError:
            return None  # A pass over all rows says whether that is wrong.
        measured = self._rows.measure(v)
        candidates = Candidates(near, share.that_count(there.log_rows), v, cutoff, share.shards)
        return measured, Lists(candidates, self._scaled_target(there.log_mass, measured), are_whole=False, are_of_share=True)

    def _scaled_target(self, log_mass: np.ndarray, measured: Measurement) -> Target:
        """Returns the target for lists whose masses have the logarithms `log_mass`, float64 [K], where those of all rows are as measured."""
        ratio = np.clip(np.exp(log_mass - measured.log_mass), 1 / _LARGEST_RATIO, _LARGEST_RATIO)
        return self._target.scaled(ratio)


def are_sharp(rows: Rows, potentials: np.ndarray) -> bool:
    """Returns True if rows are sharp enough for lists, by a few of them."""
    look = _look_at(rows, potentials)
    return look is not None and look.cutoff(USUAL_CUTOFF) is not None


class _Look(NamedTuple):
    """A look at all entries of a few rows."""

    distances: np.ndarray
    """The distances of the entries from the log-sum-exp of their row, and infinity."""
    num_rows: int
    """The number of rows."""
    num_clusters: int
    """The number of entries in a row."""

    def distance_of(self, count: float) -> float:
        """Returns the distance within which there are so many entries a row, on average."""
        rank = min(int(count * self.num_rows), len(self.distances) - 1)
        return float(np.partition(self.distances, rank)[rank])

    def entries_per_row(self, cutoff: float) -> float:
        """Returns how many entries a row are within a distance, on average."""
        return np.count_nonzero(self.distances <= cutoff) / self.num_rows

    def missed(self, cutoff: float) -> float:
        """Returns the share of the rows that the entries beyond a distance have."""
        return float(np.exp(-self.distances[self.distances > cutoff]).sum()) / self.num_rows

    def cutoff(self, usual: float) -> float | None:
        """Returns the cutoff at which lists have the right length, if possible the usual one; None if rows are not sharp enough."""
        most = max(_MIN_PER_ROW, min(MAX_PER_ROW, int(self.num_clusters * _MAX_SHARE_OF_ROW)))
        cutoff = min(max(usual, self.distance_of(_MIN_PER_ROW)), self.distance_of(most))
        return cutoff if cutoff >= _MIN_CUTOFF else None


def _look_at(rows: Rows, potentials: np.ndarray) -> _Look | None:
    """Looks at a few rows, spread evenly; returns None if one of them is not finite."""
    some = rows.sample(_ROWS_TO_LOOK_AT)
    with np.errstate(over="ignore", invalid="ignore"):  # The pass says what is wrong.
        shifted = some.scores(slice(0, some.num_rows)) + potentials
        shifted -= shifted.max(axis=1, keepdims=True)
        (distances,) = rows.shards.joined((np.log(np.exp(shifted).sum(axis=1, keepdims=True)) - shifted).ravel())
    if np.isnan(distances).any():
        return None
    return _Look(np.append(distances[np.isfinite(distances)], np.inf), some.num_all, rows.num_clusters)
