"""The entropic optimal transport that labels images: `sinkhorn`.

Asano et al., ICLR 2020 (arXiv 1911.05371), section 3.1: maximise <Q, log P> + entropy(Q) / lam over all Q [N, K] whose rows
sum to 1/N and whose columns sum to t (1/K). The solution is Q = diag(alpha) P^lam diag(beta) (eq. 7). The row scaling beta cannot
move an argmax, so that K numbers, the potentials v = log alpha, determine the labels:

    label_i = argmax_k (lam * log p_ik + v_k)

This module checks the arguments and makes the result. solve.py finds v, by passes over chunks of rows (rows.py) that XLA compiles
(passes.py), with proposals of newton.py or acceleration.py between them. All work on N x K numbers is compiled. Between passes there are
vectors of K numbers, float64 in NumPy, and where rows are sharp a few candidates of each row.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.coarse import coarse_start
from sela_tf.transport.errors import KnownLabelsError
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.marginals import Marginals, shares_and_target
from sela_tf.transport.rows import Rows
from sela_tf.transport.shards import ALONE, Shards
from sela_tf.transport.size_bounds import SizeBound, bounded_target, check_only_bounds, check_size_bounds
from sela_tf.transport.solve import BYTES_STORED, MAX_DRIFT, Settings, fits, solve
from sela_tf.transport.state import Solved
from sela_tf.transport.table import Table
from sela_tf.transport.target import Target

# Below this the error is that of float32 marginals, which no iteration lowers.
_MIN_TOLERANCE = 1e-6
# Half precision rounds entries to 5e-4 and their sums to a few 1e-6, which is too coarse for tolerances below this.
_FLOAT16_TOLERANCE = 1e-4
# A solve of at least this many entries announces its memory and time if it is verbose.
_LARGE = 2**29
# A share of the rows of 1 / 16 or less is gathered; more are read with all others.
_FEW = 16


class TransportPlan(NamedTuple):
    """The soft assignment Q = diag(alpha) P^lam diag(beta) of the paper's eq. 7 (arXiv 1911.05371), float64."""

    q: np.ndarray
    """The plan Q, [N, K]. Rows sum to 1/N, and columns to 1/K within the marginal error of the solve."""
    log_alpha: np.ndarray
    """The logarithms of the column scaling, [K]: the potentials."""
    log_beta: np.ndarray
    """The logarithms of the row scaling, [N]. Beta itself overflows where all of P_i^lam underflows."""

    @property
    def alpha(self) -> np.ndarray:
        """The scaling of the columns, float64 [K]."""
        return np.exp(self.log_alpha)

    @property
    def beta(self) -> np.ndarray:
        """The scaling of the rows, float64 [N]; infinite where it exceeds float64."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_beta)


class SinkhornResult(NamedTuple):
    """The result of `sinkhorn`: labels, the potentials that they follow from, and how exact these are."""

    labels: np.ndarray
    """The cluster of each row, int64 [N]: argmax_k (lam * log_probs + potentials), or the known label. The clusters' sizes are nearly, not
    exactly, those asked for."""
    potentials: np.ndarray
    """The logarithms of alpha, float32 [K], of mean zero unless sizes have bounds. They label new images, and start the next solve."""
    marginal_error: float
    """The L1 error of the clusters' shares, sum_k |mean_i q_ik - t_k| in [0, 2], over the rows whose label is not known, with
    q_i = softmax(lam * log_probs_i + potentials). It is measured by an exact pass at the potentials returned."""
    num_iterations: int
    """The number of passes over the log-probabilities, exact and stored. Passes over a share of the rows at the start do not count."""
    converged: bool
    """True if `marginal_error` reached the tolerance; otherwise do not train on the labels. No solve can converge where -inf forbids a
    cluster to more rows than its share allows."""
    lam: float
    """The inverse strength of the entropic regularisation that was used."""
    primal: float
    """The regularised objective at q, mean_i [<q_i, log_probs_i> + entropy(q_i) / lam], over the rows whose label is not known."""
    dual: float
    """The dual value, mean_i log sum_k exp(lam * log_probs_ik + potentials_k) / lam - <t, potentials> / lam, over the rows whose label is
    not known: an upper bound on the objective of any plan with these marginals. With bounds t is the best within them at the potentials."""
    marginals: np.ndarray
    """The clusters' shares t of all rows, those of known label included, that were asked for, float64 [K]; with bounds those that were
    found."""

    @property
    def duality_gap(self) -> float:
        """The difference `dual` - `primal`, 0 at the optimum. It may be slightly negative, because q has t only nearly as its marginals."""
        return self.dual - self.primal

    def plan(self, log_probs: np.ndarray | tf.Tensor) -> TransportPlan:
        """Returns the soft assignment for `log_probs` [N, K], which may be of other images than those that were solved for."""
        scores = self.lam * np.asarray(log_probs, np.float64) + self.potentials.astype(np.float64)
        highest = scores.max(axis=1, keepdims=True)
        log_rows = highest + np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
        log_beta = -(log_rows[:, 0] + np.log(len(scores)))
        return TransportPlan(np.exp(scores - log_rows) / len(scores), self.potentials.astype(np.float64), log_beta)


def sinkhorn(
    log_probs: np.ndarray | tf.Tensor | LinearLogits | Table,
    *,
    lam: float = 25.0,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    initial_potentials: np.ndarray | tf.Tensor | None = None,
    marginals: Marginals = "uniform",
    known: np.ndarray | None = None,
    size_min: SizeBound = None,
    size_max: SizeBound = None,
    storage: str = "auto",
    memory_limit: float | None = None,
    num_threads: int | None = None,
    verbose: bool = False,
    shards: Shards = ALONE,
) -> SinkhornResult:
    """Labels N images with K clusters that are nearly equally large, or of other shares, by optimal transport (arXiv 1911.05371, eq. 5-8).

    Args:
        log_probs: [N, K], log p(y|x) or logits: a constant added to a row changes nothing. -inf forbids a cluster to a row; whole rows
            or columns of it are refused. A tensor is read where it lies. Anything else that slices to arrays [n, K] is read a chunk at a
            time, also an np.memmap larger than memory. Or `sela_tf.LinearLogits`, computed block by block and never stored. Or a table of
            these, as `assign_labels` shares it between its transports.
        lam: the inverse strength of the entropic regularisation; 25 on ImageNet, 10 on CIFAR in the paper. A larger one is closer to
            the unregularised transport. The plain iteration of the paper needs more iterations for it; this solve often needs
            fewer, because Newton's method takes over where rows are sharp.
        tolerance: the L1 error of the clusters' shares at which the solve ends; at least 1e-6.
        max_iterations: the number of passes over the log-probabilities after which the solve ends without having converged.
        initial_potentials: [K], the potentials of an earlier solve as a warm start; zeros if None.
        marginals: the clusters' shares: "uniform", K positive numbers, or a named prior, "zipf" or "gaussian" (described in
            `sela_tf.transport.marginals`).
        known: integers [N], the cluster of the rows whose label is known and -1 elsewhere. Those rows keep it and count
            towards their cluster's share.
        size_min: the smallest number of rows of a cluster, or K such numbers. With it or `size_max` the clusters' shares are not fixed, but
            the best within these bounds. The potentials are then the prices of the bounds: 0 for a cluster between them.
        size_max: the largest number of rows of a cluster, or K such numbers.
        storage: the number format in which rows are stored for passes without exponentials: "float16" takes half of the memory of a
            float32 matrix, "float32" as much as one, "none" nothing, but a pass then takes 5 times as long. "auto" stores nothing for
            `LinearLogits`, and otherwise float16, or float32 where the tolerance is below 1e-4.
        memory_limit: the bytes that stored rows and Newton's candidate lists may take, in addition to `log_probs`; None for no limit.
            "auto" then stores rows only if they fit.
        num_threads: the number of threads on a CPU; None for as many as there are processors. The result does not depend on it.
        verbose: True to print to stderr the memory and time that a large solve will take, before it starts.
        shards: the workers that have a share of the rows each and call this function together. N and `known` are then those of this
            worker's rows, and so are the labels returned; the rest is about all rows.

    Raises:
        ValueError: the shape is not [N, K], N is 0, a value is NaN or +inf, a whole row or column is -inf, or an argument is
            out of range.
    """
    known = None if known is None else np.asarray(known)
    _check_settings(lam, tolerance, max_iterations, storage, memory_limit, num_threads)
    log_probs, num_rows, num_clusters = _checked_log_probs(log_probs)
    counted = None if known is None else _rows_to_label(known, num_rows, num_clusters)
    start = None if initial_potentials is None else _checked_potentials(initial_potentials, num_clusters)
    rows = Rows(log_probs, lam=float(lam), counted=counted, num_threads=num_threads, shards=shards)
    if not rows.num_counted:
        raise KnownLabelsError(f"`known` must leave a row to be labelled. Received: labels for all {rows.num_all} rows")
    num_known = None if known is None else shards.total(np.bincount(known[known >= 0], minlength=num_clusters))[0].astype(np.int64)
    if storage == "auto":
        storage = "none" if rows.is_computed else usual_storage(tolerance)
        storage = storage if fits(storage, rows, memory_limit) else "none"
    if verbose:
        _announce(rows, storage)
    if size_min is None and size_max is None:
        shares, free_shares = shares_and_target(marginals, num_known, rows.num_all, num_clusters, lambda: _present_masses(rows))
        target = Target(free_shares)
    else:
        check_only_bounds(marginals)
        bounds = check_size_bounds(size_min, size_max, rows.num_all, num_clusters)
        shares, target = None, bounded_target(*bounds, num_known, rows.num_all)
    if start is None:
        start = coarse_start(rows, target)
    solved = solve(rows, start, target, Settings(tolerance, max_iterations, storage, memory_limit))
    end, labels = solved.end, _labels(rows, known, solved)
    v, mean_log_row = end.potentials, end.measured.mean_log_row
    if shares is None:
        shares = (np.exp(end.log_shares) * rows.num_counted + (0 if num_known is None else num_known)) / rows.num_all
        shares /= shares.sum()
    return SinkhornResult(
        labels=labels,
        potentials=v.astype(np.float32),
        marginal_error=end.error,
        num_iterations=solved.num_iterations,
        converged=end.error <= tolerance,
        lam=float(lam),
        primal=(mean_log_row - float(np.exp(end.log_mass) @ v)) / lam,
        dual=(mean_log_row - target.price(v)) / lam,
        marginals=shares,
    )


def _labels(rows: Rows, known: np.ndarray | None, solved: Solved) -> np.ndarray:
    """Returns the labels of all rows where a solve ended, int64 [N]; those that are known as they are."""
    v, labels = solved.end.potentials, np.full(rows.num_rows, -1) if known is None else known.astype(np.int64)
    if solved.candidates is not None:
        labels[labels < 0] = solved.candidates.labels(v, solved.log_rows)
    missing = np.flatnonzero(labels < 0)
    if len(missing) > rows.num_rows / _FEW:
        labels[missing] = (rows.labels(v) if solved.labels is None else solved.labels)[missing]
    elif len(missing):
        labels[missing] = (rows.scores(missing) + v).argmax(axis=1)
    return labels


def usual_storage(tolerance: float) -> str:
    """Returns the number format of stored rows that is precise enough for a tolerance, float16 or float32."""
    return "float16" if tolerance >= _FLOAT16_TOLERANCE else "float32"


def _present_masses(rows: Rows) -> np.ndarray:
    """Returns the clusters' shares at zero potentials, float64 [K]: those that the network gives them by itself."""
    return np.exp(rows.measure(np.zeros(rows.num_clusters)).log_mass)


def _announce(rows: Rows, storage: str) -> None:
    """Prints to stderr the memory and time that a large solve will take."""
    entries = rows.num_rows * rows.num_clusters
    if entries < _LARGE:
        return
    gigabytes = entries * BYTES_STORED[storage] / 1e9
    print(
        f"sinkhorn: {rows.num_rows:,} x {rows.num_clusters:,}; {gigabytes:.1f} GB of stored rows; "
        f"about {rows.estimate_pass_seconds():.1f} s an exact pass, of which a solve takes 2 to 10",
        file=sys.stderr,
        flush=True,
    )


def _check_settings(
    lam: float, tolerance: float, max_iterations: int, storage: str, memory_limit: float | None, num_threads: int | None
) -> None:
    """Checks that the settings of a solve are in range.

    Raises:
        ValueError: a setting is not; the message names it.
    """

    def is_count(value: Any) -> bool:
        return isinstance(value, int | np.integer) and bool(1 <= value < 2**31)

    for name, value, valid, bound in (
        ("lam", lam, 0 < np.float32(lam) < np.inf, "a positive float32"),
        ("tolerance", tolerance, np.isfinite(tolerance) and tolerance >= _MIN_TOLERANCE, f"at least {_MIN_TOLERANCE:g}"),
        ("max_iterations", max_iterations, is_count(max_iterations), "a positive int32"),
        ("memory_limit", memory_limit, memory_limit is None or 0 <= memory_limit < np.inf, "a number of bytes or None"),
        ("num_threads", num_threads, num_threads is None or is_count(num_threads), "a positive int32 or None"),
        ("storage", storage, storage in ("auto", *MAX_DRIFT), f"auto, {', '.join(MAX_DRIFT)}"),
    ):
        if not valid:
            raise ValueError(f"`{name}` must be {bound}. Received: {name}={value}")


def _checked_log_probs(log_probs: Any) -> tuple[Any, int, int]:
    """Returns log-probabilities that `Rows` can read, N and K.

    Raises:
        ValueError: they are not [N, K] and floating point, or `LinearLogits` do not fit together.
    """
    if isinstance(log_probs, Table):
        return log_probs, log_probs.num_rows, log_probs.num_clusters
    if isinstance(log_probs, LinearLogits):
        log_probs = log_probs.checked()
        return log_probs, len(log_probs.features), log_probs.kernel.shape[1]
    if not hasattr(log_probs, "shape") or not hasattr(log_probs, "dtype"):
        log_probs = np.asarray(log_probs)
    if not tf.as_dtype(log_probs.dtype).is_floating:
        raise ValueError(f"`log_probs` must be floating point. Received: dtype={log_probs.dtype}")
    shape = tuple(log_probs.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"`log_probs` must be [N, K] with at least one row and one column. Received: shape {shape}")
    return log_probs, *shape


def _rows_to_label(known: np.ndarray, num_rows: int, num_clusters: int) -> np.ndarray:
    """Returns the rows whose label is not known, bool [N].

    Raises:
        ValueError: `known` is not N integers from -1 to K - 1.
    """
    if known.shape != (num_rows,) or known.dtype.kind not in "iu":
        raise ValueError(f"`known` must be {num_rows} integers, one a row. Received: {known.dtype} {known.shape}")
    if known.min() < -1 or known.max() >= num_clusters:
        outside = known[(known < -1) | (known >= num_clusters)][0]
        raise ValueError(f"`known` must be from -1 (not known) to {num_clusters - 1}. Received: {outside}")
    return known < 0


def _checked_potentials(potentials: Any, num_clusters: int) -> np.ndarray:
    """Returns potentials to start from, float64 [K].

    Raises:
        ValueError: they are not K finite numbers.
    """
    start = np.asarray(potentials, np.float64)
    if start.shape != (num_clusters,) or not np.isfinite(start).all():
        raise ValueError(
            f"`initial_potentials` must be {num_clusters} finite numbers, one for each cluster. "
            f"Received: shape {start.shape}, values {start.ravel()[:4]}…"
        )
    return start
