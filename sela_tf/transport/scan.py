"""The scan of the rounding: one reading of the log-probabilities that finds each row's candidates, the clusters near its best one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.linear_logits import ComputedLogits
from sela_tf.transport.rows import Rows

# A block of rows has at most this many elements, so that it stays in the cache while it is added to, compared and searched.
_BLOCK_SIZE = 2**18


class Candidates(NamedTuple):
    """Pairs of a row and a cluster that it may go to, sorted by row, for the rows that have several."""

    rows: np.ndarray
    """The rows, int64 [R]."""
    counts: np.ndarray
    """The number of candidates of each of them, int64 [R]."""
    column: np.ndarray
    """The clusters, int64 [E]."""
    value: np.ndarray
    """The log-probabilities of the pairs, float64 [E]."""
    complete: bool
    """True if these are all pairs within the cutoff; False if some were left out at random."""
    largest: float
    """The largest magnitude of a row's best score, from which rounding errors are bounded."""


def scan(
    log_probs: np.ndarray | ComputedLogits,
    u: np.ndarray,
    cutoff: float,
    slack: float,
    known: np.ndarray,
    labels: np.ndarray,
    max_candidates: float,
    dtype: type,
    rng: np.random.Generator,
    on_cards: Rows | None = None,
) -> Candidates:
    """Finds the clusters within `cutoff` of each row's best one.

    Rows with one such cluster are labelled with it, and rows whose label is known are passed over; the candidates of all other rows
    are returned.

    Args:
        log_probs: [N, K].
        u: float64 [K], the potentials that are added to `log_probs`.
        cutoff: the distance from the row's best score up to which a cluster is a candidate, in units of `log_probs`.
        slack: the distance up to which clusters count as tied with the best.
        known: int64 [N], the label of rows where it is known, -1 elsewhere.
        labels: int64 [N], the present labels or -1; changed in place.
        max_candidates: the average number of candidates a row beyond which some are left out.
        dtype: float32 or float64, in which scores are added and compared.
        rng: the source of the random numbers by which candidates are left out.
        on_cards: the same rows on graphics cards, which then look for candidates; chunks that have too many are left to the host.

    Raises:
        ValueError: `log_probs` has NaN or +inf, or a sum with a potential overflows float64.
    """
    num_rows, num_clusters = log_probs.shape
    block_rows = max(1, min(num_rows, _BLOCK_SIZE // num_clusters))
    scores_buffer, near_buffer = np.empty((block_rows, num_clusters), dtype), np.empty((block_rows, num_clusters), bool)
    u, noise = u.astype(dtype), rng.random(2 * scores_buffer.size, np.float32)

    def look_at(part: slice) -> Iterator[_Block]:
        for start in range(part.start, part.stop, block_rows):
            stop = min(start + block_rows, part.stop)
            rows, block = log_probs[start:stop], slice(start, stop)
            scores, near = np.add(rows, u, out=scores_buffer[: len(rows)]), near_buffer[: len(rows)]
            top = scores.max(axis=1)
            if not top.max() < np.inf:
                _check_block(rows, start, dtype)
            passed_over = (known[block] >= 0) | (top == -np.inf)
            np.greater_equal(scores, np.maximum(top - cutoff, np.finfo(dtype).min)[:, np.newaxis], out=near)
            near[passed_over] = False
            index, complete = np.flatnonzero(near), True
            if len(index) > max_candidates * len(rows):
                complete = False
                shift = rng.integers(noise.size - scores.size + 1)
                tied = scores >= (top - slack)[:, np.newaxis]
                _leave_out(near, tied, max_candidates, noise[shift : shift + scores.size].reshape(scores.shape))
                for keep in (scores.argmax(axis=1), labels[block]):
                    near[np.arange(len(rows)), keep] |= keep >= 0
                near[passed_over] = False
                index = np.flatnonzero(near)
            row, column = np.divmod(index, num_clusters)
            highest = np.abs(top[~passed_over]).max(initial=0.0)
            yield _Block(start, row, column, rows[row, column].astype(np.float64), float(highest), complete)

    def blocks() -> Iterator[_Block]:
        if on_cards is None:
            yield from look_at(slice(0, num_rows))
            return
        for part, found in on_cards.near_tops(u, cutoff, known < 0, max_candidates):
            if found is None:
                yield from look_at(part)
            else:
                yield _Block(part.start, *found, True)

    found, largest, complete = [], 0.0, True
    for block in blocks():
        largest, complete = max(largest, block.largest), complete and block.complete
        several = np.bincount(block.row, minlength=1)[block.row] > 1
        labels[block.start + block.row[~several]] = block.column[~several]
        found.append((block.start + block.row[several], block.column[several], block.value[several]))
    row, column, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    first = np.flatnonzero(np.diff(row, prepend=-1))
    return Candidates(row[first], np.diff(first, append=len(row)), column, value, complete, largest)


class _Block(NamedTuple):
    """The candidates of consecutive rows, sorted by row."""

    start: int
    """The first row."""
    row: np.ndarray
    """The rows of the candidates, counted from the first."""
    column: np.ndarray
    """Their clusters."""
    value: np.ndarray
    """Their log-probabilities, float64."""
    largest: float
    """The largest magnitude of a row's best score."""
    complete: bool
    """True if none were left out."""


def _leave_out(near: np.ndarray, tied: np.ndarray, max_candidates: float, noise: np.ndarray) -> None:
    """Thins the candidates of a block at random, in place.

    Two of a row's tied clusters are enough: over all rows, each pair of clusters is still joined by many. Of the other candidates,
    half of `max_candidates` a row are kept, on average.

    Args:
        near: bool [n, K], the candidates; changed in place.
        tied: bool [n, K], the clusters that are as good as the row's best; changed in place.
        max_candidates: the average number of candidates a row.
        noise: float32 [n, K], uniform in [0, 1).
    """
    tied &= near
    near &= ~tied
    count = np.count_nonzero(near)
    if count > max_candidates / 2 * len(near):
        near &= noise * np.float32(count) < max_candidates / 2 * len(near)
    lots, rows = np.where(tied, noise, -1), np.arange(len(near))
    for _ in range(2):
        drawn = lots.argmax(axis=1)
        near[rows, drawn] |= tied[rows, drawn]
        lots[rows, drawn] = -1


def _check_block(rows: np.ndarray, start: int, dtype: type) -> None:
    """Checks why a score of a block is not finite; returns if the sum with a potential overflowed float32, as float64 may hold it.

    Args:
        rows: [n, K], the block's log-probabilities.
        start: the index of its first row.
        dtype: the type that scores were added in.

    Raises:
        ValueError: a value is NaN or +inf, or the sum overflowed float64.
    """
    wrong = np.argwhere(np.isnan(rows) | (rows == np.inf))
    if len(wrong):
        row, column = wrong[0]
        raise NotFiniteError(
            f"`log_probs` must hold neither NaN nor +inf. Received: {rows[row, column]} at row {start + row}, column {column}"
        )
    if dtype == np.float64:
        raise NotFiniteError(f"`log_probs` must not overflow when the potentials are added. Received: largest value {rows.max():g}")
