"""The choices that rows have within a horizon, for the rounding: all of its reading of the matrix that is not of a sample."""

from __future__ import annotations

import numpy as np

from sela_tf.transport.linear_logits import ComputedLogits

# Elements in a block of rows: few enough to stay in the cache while they are added, compared and searched.
_BLOCK_SIZE = 2**18


def scan(
    log_probs: np.ndarray | ComputedLogits,
    u: np.ndarray,
    horizon: float,
    slack: float,
    held: np.ndarray,
    labels: np.ndarray,
    max_choices: float,
    dtype: type,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool, float]:
    """Finds the clusters within `horizon` of each row's best.

    Rows with one such cluster get its label, of the others the choices come back: row, column, log_probs there, whether these are
    all, and the magnitude of the largest maximum of a row.
    """
    (num_rows, num_clusters), largest, complete, found = log_probs.shape, 0.0, True, []
    block_rows = max(1, min(num_rows, _BLOCK_SIZE // num_clusters))
    scores_buffer, near_buffer = np.empty((block_rows, num_clusters), dtype), np.empty((block_rows, num_clusters), bool)
    u, noise = u.astype(dtype), rng.random(2 * scores_buffer.size, np.float32)
    for start in range(0, num_rows, block_rows):
        rows, block = log_probs[start : start + block_rows], slice(start, start + block_rows)
        scores, near = np.add(rows, u, out=scores_buffer[: len(rows)]), near_buffer[: len(rows)]
        top = scores.max(axis=1)
        if not top.max() < np.inf:
            _refuse(rows, start, dtype)
        fixed = (held[block] >= 0) | (top == -np.inf)
        largest = max(largest, np.abs(top[~fixed]).max(initial=0.0))
        np.greater_equal(scores, np.maximum(top - horizon, np.finfo(dtype).min)[:, np.newaxis], out=near)
        near[fixed] = False
        index = np.flatnonzero(near)
        if len(index) > max_choices * len(rows):
            complete = False
            shift = rng.integers(noise.size - scores.size + 1)
            _thin(
                near, scores >= (top - slack)[:, np.newaxis], max_choices, noise[shift : shift + scores.size].reshape(scores.shape)
            )
            for keep in (scores.argmax(axis=1), labels[block]):
                near[np.arange(len(rows)), keep] |= keep >= 0
            near[fixed] = False
            index = np.flatnonzero(near)
        row, column = np.divmod(index, num_clusters)
        several = np.bincount(row, minlength=1)[row] > 1
        labels[start + row[~several]] = column[~several]
        row, column = row[several], column[several]
        found.append((start + row, column, rows[row, column].astype(np.float64)))
    row, column, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return row, column, value, complete, float(largest)


def _thin(near: np.ndarray, tied: np.ndarray, max_choices: float, noise: np.ndarray) -> None:
    """Of massive ties, keeps two for each row at random: pairs of clusters still have many. Of the rest a part if need be."""
    tied &= near
    near &= ~tied
    count = np.count_nonzero(near)
    if count > max_choices / 2 * len(near):
        near &= noise * np.float32(count) < max_choices / 2 * len(near)
    lots, which = np.where(tied, noise, -1), np.arange(len(near))
    for _ in range(2):
        shown = lots.argmax(axis=1)
        near[which, shown] |= tied[which, shown]
        lots[which, shown] = -1


def _refuse(rows: np.ndarray, start: int, dtype: type) -> None:
    """Raises unless it was the sum with the potentials that overflowed, in float32."""
    wrong = np.argwhere(np.isnan(rows) | (rows == np.inf))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"`log_probs` must hold neither NaN nor +inf. Received: {rows[row, column]} at row {start + row}, column {column}"
        )
    if dtype == np.float64:
        raise ValueError(f"`log_probs` must not overflow when the potentials are added. Received: largest value {rows.max():g}")
