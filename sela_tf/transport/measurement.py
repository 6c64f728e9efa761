"""The results of passes: the masses of the clusters, `Measurement`, and the entries that matter, `Near`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Measurement(NamedTuple):
    """The result of one exact pass at potentials v."""

    log_mass: np.ndarray
    """The logarithms of the clusters' masses m_k = mean_i softmax(s_i + v)_k over the rows that count, float64 [K]."""
    log_rows: np.ndarray
    """The log-sum-exp of each row, log sum_k exp(s_ik + v_k), float32 [N]; float64 where float32 is too coarse."""
    mean_log_row: float
    """The mean of `log_rows` over the rows that count."""


class Near(NamedTuple):
    """The entries near the log-sum-exp of their row, of the rows of a chunk that count, sorted by row."""

    counts: np.ndarray
    """The number of entries of each row, int64 [n]."""
    columns: np.ndarray
    """Their clusters, int64 [E]."""
    scores: np.ndarray
    """Their scores less the log-sum-exp of their row, float64 [E]."""
