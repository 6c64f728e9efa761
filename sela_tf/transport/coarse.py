"""The start of a solve from nothing: `coarse_start`, potentials from a share of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.lists import are_sharp
from sela_tf.transport.rows import Rows
from sela_tf.transport.state import State
from sela_tf.transport.target import Target

# A solve of many rows whose zero potentials have at least this error starts on a share of the rows.
_ERROR = 0.5
_ROWS, _ROWS_PER_CLUSTER = 2**12, 2
_ENTRIES = 2**22
_LAMS, _SOFT_LAMS = (1 / 32, 1 / 8, 1 / 2), (1.0,) * 4


def coarse_start(rows: Rows, target: Target) -> np.ndarray:
    """Returns potentials float64 [K] to start from: zeros, or those of an annealing on a share of the rows where zeros are far off.

    The annealing takes one Sinkhorn step at each of a few growing lam.
    """
    zeros = np.zeros(rows.num_clusters)
    if rows.num_all * rows.num_clusters < _ENTRIES:
        return zeros
    is_sharp = are_sharp(rows, zeros)
    number = max(_ROWS, _ROWS_PER_CLUSTER * rows.num_clusters) if is_sharp else _ROWS
    some = rows.sample(number)
    if some.num_counted < number / 2:
        return zeros
    try:
        if State(zeros, some.measure(zeros), target).error < _ERROR:
            return zeros
        return _annealed(some, target, _LAMS if is_sharp else _SOFT_LAMS)
    except NotFiniteError:
        # A cluster may be forbidden to all of these rows, but not to others; and a pass over all rows names the row that is wrong.
        return zeros


def _annealed(rows: Rows, target: Target, parts: Sequence[float]) -> np.ndarray:
    """Returns potentials float64 [K] after a Sinkhorn step at each of some parts of lam."""
    v, before = np.zeros(rows.num_clusters), 1.0
    for part in parts:
        v, before = v * (part / before), part
        v = v + State(v, rows.with_lam(rows.lam * part).measure(v), target).step
    return v / before
