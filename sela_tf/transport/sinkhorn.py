"""The self-labelling transport, solved: `sinkhorn`.

Asano et al., ICLR 2020 (arXiv 1911.05371), section 3.1: maximise <Q, log P> + entropy(Q) / lam over all Q [N, K] whose rows
sum to 1/N and whose columns sum to t (1/K). The solution is Q = diag(alpha) P^lam diag(beta) (eq. 7). The row scaling beta cannot
move an argmax, so K numbers, the potentials v = log alpha, say everything about the labels:

    label_i = argmax_k (lam * log p_ik + v_k)

This file is the face: arguments, results, certificate. solve.py says how v is found: by passes over rows.py's chunks, compiled by XLA
(passes.py), with proposals from newton.py or acceleration.py between them. All N x K work is compiled but for the gathering of Newton's
candidates; between passes there are only vectors of K numbers, which NumPy handles in float64.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.marginals import Marginals, held_and_target
from sela_tf.transport.rows import Rows
from sela_tf.transport.solve import BYTES_STORED, MOST_DRIFT, coarse_start, fits, solve

# Below this the rounding of float32 marginals decides, not the iteration.
_MIN_TOLERANCE = 1e-6
# Half precision rounds entries to 5e-4, their sums to a few 1e-6.
_FLOAT16_TOLERANCE = 1e-4
# Entries from which a solve announces what it will take.
_LARGE = 2**29


class TransportPlan(NamedTuple):
    """The soft assignment Q = diag(alpha) P^lam diag(beta) of the paper's eq. 7, float64."""

    q: np.ndarray
    """[N, K], rows sum to 1/N; columns to 1/K within the marginal error of the solve."""
    log_alpha: np.ndarray
    """[K], the potentials."""
    log_beta: np.ndarray
    """[N]. In logarithms because beta itself overflows where all of P_i^lam underflows."""

    @property
    def alpha(self) -> np.ndarray:
        """[K], the scaling of the columns."""
        return np.exp(self.log_alpha)

    @property
    def beta(self) -> np.ndarray:
        """[N], the scaling of the rows; infinite where it exceeds float64."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_beta)


class SinkhornResult(NamedTuple):
    """What `sinkhorn` found; the N x K plan is made only by `plan`."""

    labels: np.ndarray
    """int64 [N], argmax_k (lam * log_probs + potentials), or the known label: nearly, not exactly, balanced."""
    potentials: np.ndarray
    """float32 [K], log alpha, mean zero. They label new images, and start the next solve."""
    marginal_error: float
    """sum_k |mean_i q_ik - t_k| over the rows whose label is not known, with q_i = softmax(lam * log_probs_i + potentials);
    between 0 and 2. Measured exactly, in a pass of its own, at the potentials returned."""
    num_iterations: int
    """Passes over the matrix, exact and stored ones, without those over a share of the rows at the start."""
    converged: bool
    """Whether `marginal_error` reached the tolerance. Labels of a solve that did not are not to be trained on. It cannot where -inf
    forbids a cluster to so many rows that no plan has these marginals."""
    lam: float
    """The inverse strength of the entropic regularisation that was used."""
    primal: float
    """mean_i [<q_i, log_probs_i> + entropy(q_i) / lam], the regularised objective at q. Means are over rows without known label."""
    dual: float
    """mean_i log sum_k exp(lam * log_probs_ik + potentials_k) / lam - <t, potentials> / lam: no plan of these marginals has a
    larger objective."""
    marginals: np.ndarray
    """float64 [K], t, which the columns of all rows together, those of known label too, were to sum to."""

    @property
    def gap(self) -> float:
        """Dual - primal, which is 0 at the optimum; q does not quite have the marginals, so it may be slightly negative."""
        return self.dual - self.primal

    def plan(self, log_probs: np.ndarray | tf.Tensor) -> TransportPlan:
        """The soft assignment for `log_probs` [N, K], which need not be the images that were solved for."""
        scores = self.lam * np.asarray(log_probs, np.float64) + self.potentials.astype(np.float64)
        highest = scores.max(axis=1, keepdims=True)
        log_rows = highest + np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
        log_beta = -(log_rows[:, 0] + np.log(len(scores)))
        return TransportPlan(np.exp(scores - log_rows) / len(scores), self.potentials.astype(np.float64), log_beta)


def sinkhorn(
    log_probs: np.ndarray | tf.Tensor | LinearLogits,
    *,
    lam: float = 25.0,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    initial_potentials: np.ndarray | tf.Tensor | None = None,
    marginals: Marginals = "uniform",
    known: np.ndarray | None = None,
    storage: str = "auto",
    memory_limit: float | None = None,
    num_threads: int | None = None,
    verbose: bool = False,
) -> SinkhornResult:
    """Labels N images with K equally large clusters (arXiv 1911.05371, eq. 5-8).

    Args:
        log_probs: [N, K], log p(y|x) or logits: a constant added to a row changes nothing. -inf is allowed, but not as a
            whole row or column. A tensor is read where it lies; of anything else that slices to arrays [n, K], also an np.memmap
            larger than memory, a chunk is read at a time. Or `sela_tf.LinearLogits`, computed block by block and never stored.
        lam: inverse of the entropic regularisation; 25 on ImageNet, 10 on CIFAR in the paper. Larger is closer to the
            unregularised transport and needs more iterations.
        tolerance: the solve ends when the L1 error of the cluster marginals is at most this; at least 1e-6.
        max_iterations: passes over the matrix after which the solve ends without having converged.
        initial_potentials: [K], the potentials of an earlier solve as a warm start; zeros if None.
        marginals: the clusters' shares: "uniform", K positive numbers, or a named prior; see `sela_tf.transport.marginals`.
        known: integers [N], the cluster of the rows whose label is known and -1 elsewhere. Those rows keep it and count
            towards their cluster's share.
        storage: how passes without exponentials store the rows: "float16" takes half of a float32 matrix, "float32" as much as
            one, "none" nothing, at 5 times the time a pass. "auto": none for `LinearLogits`, otherwise float16, or float32 where the
            tolerance is below 1e-4.
        memory_limit: bytes that stored rows and Newton's lists may take, besides what `log_probs` takes; None for no limit. "auto" then
            stores rows only if they fit.
        num_threads: for CPUs; as many as there are processors if None. The result does not depend on it.
        verbose: say on stderr what a large solve will take, before it starts.

    Raises:
        ValueError: the shape is not [N, K], N is 0, a value is NaN or +inf, a whole row or column is -inf, or an argument is
            out of range.
    """
    known = None if known is None else np.asarray(known)
    rows, start = _checked(log_probs, lam, tolerance, max_iterations, initial_potentials, known, storage, memory_limit, num_threads)
    if storage == "auto":
        storage = "none" if rows.is_linear else usual_storage(tolerance)
        storage = storage if fits(storage, rows, memory_limit) else "none"
    if verbose:
        _announce(rows, storage)
    shares, target = held_and_target(marginals, known, rows.num_rows, rows.num_clusters, lambda: _masses(rows))
    if start is None:
        start = coarse_start(rows, target, tolerance, storage, memory_limit)
    end, passes = solve(rows, start, target, tolerance, max_iterations, storage, memory_limit)
    v, mean_log_row = end.potentials, end.measured.mean_log_row
    labels = rows.labels(v)
    if known is not None:
        labels = np.where(known >= 0, known, labels)
    return SinkhornResult(
        labels=labels,
        potentials=v.astype(np.float32),
        marginal_error=end.error,
        num_iterations=passes,
        converged=end.error <= tolerance,
        lam=float(lam),
        primal=(mean_log_row - float(np.exp(end.log_mass) @ v)) / lam,
        dual=(mean_log_row - float(target @ v)) / lam,
        marginals=shares,
    )


def usual_storage(tolerance: float) -> str:
    """The number format of stored rows that a tolerance asks for."""
    return "float16" if tolerance >= _FLOAT16_TOLERANCE else "float32"


def _masses(rows: Rows) -> np.ndarray:
    """The clusters' shares under the network's own opinion, [K]."""
    return np.exp(rows.measure(np.zeros(rows.num_clusters)).log_mass)


def _announce(rows: Rows, storage: str) -> None:
    """Says what a large solve takes, before it starts."""
    entries = rows.num_rows * rows.num_clusters
    if entries < _LARGE:
        return
    gigabytes = entries * BYTES_STORED[storage] / 1e9
    print(
        f"sinkhorn: {rows.num_rows:,} x {rows.num_clusters:,}; {gigabytes:.1f} GB of stored rows; "
        f"about {rows.seconds_of_a_pass():.1f} s an exact pass, of which a solve takes 2 to 10",
        file=sys.stderr,
        flush=True,
    )


def _checked(
    log_probs: Any,
    lam: float,
    tolerance: float,
    max_iterations: int,
    initial_potentials: Any,
    known: np.ndarray | None,
    storage: str,
    memory_limit: float | None,
    num_threads: int | None,
) -> tuple[Rows, np.ndarray | None]:
    """The rows and where to start, or a ValueError that names what is wrong."""

    def is_count(value: Any) -> bool:
        return isinstance(value, int | np.integer) and bool(1 <= value < 2**31)

    for name, value, valid, bound in (
        ("lam", lam, 0 < np.float32(lam) < np.inf, "a positive float32"),
        ("tolerance", tolerance, np.isfinite(tolerance) and tolerance >= _MIN_TOLERANCE, f"at least {_MIN_TOLERANCE:g}"),
        ("max_iterations", max_iterations, is_count(max_iterations), "a positive int32"),
        ("memory_limit", memory_limit, memory_limit is None or 0 <= memory_limit < np.inf, "a number of bytes or None"),
        ("num_threads", num_threads, num_threads is None or is_count(num_threads), "a positive int32 or None"),
        ("storage", storage, storage in ("auto", *MOST_DRIFT), f"auto, {', '.join(MOST_DRIFT)}"),
    ):
        if not valid:
            raise ValueError(f"`{name}` must be {bound}. Received: {name}={value}")
    if isinstance(log_probs, LinearLogits):
        log_probs = log_probs.checked()
        num_rows, num_clusters = len(log_probs.features), log_probs.kernel.shape[1]
    else:
        if not hasattr(log_probs, "shape") or not hasattr(log_probs, "dtype"):
            log_probs = np.asarray(log_probs)
        if not tf.as_dtype(log_probs.dtype).is_floating:
            raise ValueError(f"`log_probs` must be floating point. Received: dtype={log_probs.dtype}")
        shape = tuple(log_probs.shape)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"`log_probs` must be [N, K] with at least one row and one column. Received: shape {shape}")
        num_rows, num_clusters = shape
    counted = None
    if known is not None:
        if known.shape != (num_rows,) or known.dtype.kind not in "iu":
            raise ValueError(f"`known` must be {num_rows} integers, one a row. Received: {known.dtype} {known.shape}")
        if known.min() < -1 or known.max() >= num_clusters:
            outside = known[(known < -1) | (known >= num_clusters)][0]
            raise ValueError(f"`known` must be from -1 (not known) to {num_clusters - 1}. Received: {outside}")
        counted = known < 0
        if not counted.any():
            raise ValueError(f"`known` must leave a row to be labelled. Received: labels for all {num_rows} rows")
    start = None
    if initial_potentials is not None:
        start = np.asarray(initial_potentials, np.float64)
        if start.shape != (num_clusters,) or not np.isfinite(start).all():
            raise ValueError(
                f"`initial_potentials` must be {num_clusters} finite numbers, one for each cluster. "
                f"Received: shape {start.shape}, values {start.ravel()[:4]}…"
            )
    return Rows(log_probs, lam=float(lam), counted=counted, num_threads=num_threads), start
