"""The self-labelling transport: Sinkhorn-Knopp in the log domain, compiled by XLA.

Asano et al., ICLR 2020 (arXiv 1911.05371), section 3.1: maximise <Q, log P> + entropy(Q) / lam over all Q [N, K] whose rows
sum to 1/N and whose columns sum to 1/K. The solution is Q = diag(alpha) P^lam diag(beta) (eq. 7). The row scaling beta cannot
move an argmax, so K numbers, the potentials v = log alpha, say everything about the labels:

    label_i = argmax_k (lam * log p_ik + v_k)

One iteration is v <- v + log(1/K) - log mean_i softmax(lam * log p_i + v), which reads the N x K matrix once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Rows that one step of the loop handles: on a CPU 128 rows of a few thousand columns stay in the second-level cache.
_BLOCK_ROWS_CPU = 128
_BLOCK_ROWS_GPU = 16384
# float32 holds exp(-87). The kernel's rows are scaled to a maximum of 1 under the potentials of the last absorption; as long as
# the potentials have moved by no more than this since, what was flushed to zero stays below exp(-47) of its row.
_MAX_DRIFT = 20.0
# A cluster whose column has vanished from the kernel would ask for an infinite step: it gets this one, and again, until the
# potentials have drifted far enough for the kernel to be made anew.
_MAX_STEP = 10.0
# Below this the rounding of float32 marginals decides, not the iteration.
_MIN_TOLERANCE = 1e-6


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
    """int64 [N], argmax_k (lam * log_probs + potentials): nearly, not exactly, balanced."""
    potentials: np.ndarray
    """float32 [K], log alpha, mean zero. They label new images, and start the next solve."""
    marginal_error: float
    """sum_k |mean_i q_ik - 1/K|, with q_i = softmax(lam * log_probs_i + potentials); between 0 and 2."""
    num_iterations: int
    """Passes over the matrix."""
    converged: bool
    """Whether `marginal_error` reached the tolerance. Labels of a solve that did not are not to be trained on."""
    lam: float
    """The inverse strength of the entropic regularisation that was used."""

    def plan(self, log_probs: np.ndarray | tf.Tensor) -> TransportPlan:
        """The soft assignment for `log_probs` [N, K], which need not be the images that were solved for."""
        scores = self.lam * np.asarray(log_probs, np.float64) + self.potentials.astype(np.float64)
        highest = scores.max(axis=1, keepdims=True)
        log_rows = highest + np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
        log_beta = -(log_rows[:, 0] + np.log(len(scores)))
        return TransportPlan(np.exp(scores - log_rows) / len(scores), self.potentials.astype(np.float64), log_beta)


def sinkhorn(
    log_probs: np.ndarray | tf.Tensor,
    *,
    lam: float = 25.0,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    initial_potentials: np.ndarray | tf.Tensor | None = None,
) -> SinkhornResult:
    """Labels N images with K equally large clusters (arXiv 1911.05371, eq. 5-8).

    Args:
        log_probs: [N, K], log p(y|x) or logits: a constant added to a row changes nothing. -inf is allowed, but not as a
            whole row or column. Computed in float32.
        lam: inverse of the entropic regularisation; 25 on ImageNet, 10 on CIFAR in the paper. Larger is closer to the
            unregularised transport and needs more iterations.
        tolerance: the solve ends when the L1 error of the cluster marginals is at most this; at least 1e-6.
        max_iterations: passes over the matrix after which the solve ends without having converged.
        initial_potentials: [K], the potentials of an earlier solve as a warm start; zeros if None.

    Raises:
        ValueError: the shape is not [N, K], N is 0, a value is NaN or +inf, a whole row or column is -inf, or an argument is
            out of range.
    """
    log_probs = _as_matrix(log_probs)
    num_rows, num_clusters = log_probs.shape
    for name, value, valid in (
        ("lam", lam, 0 < np.float32(lam) < np.inf),
        ("tolerance", tolerance, np.isfinite(tolerance) and tolerance >= _MIN_TOLERANCE),
        ("max_iterations", max_iterations, isinstance(max_iterations, int | np.integer) and 1 <= max_iterations < 2**31),
    ):
        if not valid:
            bound = {"lam": "a positive float32", "tolerance": f"at least {_MIN_TOLERANCE:g}", "max_iterations": "a positive int32"}
            raise ValueError(f"`{name}` must be {bound[name]}. Received: {name}={value}")
    if initial_potentials is None:
        potentials = tf.zeros([num_clusters])
    else:
        potentials = tf.cast(initial_potentials, tf.float32)
        if potentials.shape != (num_clusters,) or not bool(tf.reduce_all(tf.math.is_finite(potentials))):
            raise ValueError(
                f"`initial_potentials` must be {num_clusters} finite numbers, one for each cluster. "
                f"Received: shape {tuple(potentials.shape)}, values {np.asarray(potentials).ravel()[:4]}…"
            )

    block_rows = _BLOCK_ROWS_GPU if tf.config.list_logical_devices("GPU") else _BLOCK_ROWS_CPU
    padded = _pad_rows(log_probs, _padded_rows(num_rows, block_rows))
    valid, labels, potentials, error, iterations = _solve(
        padded,
        tf.constant(num_rows),
        tf.constant(lam, tf.float32),
        tf.constant(tolerance, tf.float32),
        tf.constant(max_iterations, tf.int32),
        potentials,
        block_rows,
    )
    if not bool(valid):
        raise ValueError(_complaint(np.asarray(log_probs)))
    return SinkhornResult(
        labels=labels.numpy()[:num_rows],
        potentials=potentials.numpy(),
        marginal_error=float(error),
        num_iterations=int(iterations),
        converged=bool(error <= tf.constant(tolerance, tf.float32)),
        lam=float(lam),
    )


def _as_matrix(log_probs: np.ndarray | tf.Tensor) -> tf.Tensor:
    """float32 [N, K], or a ValueError that says what came instead."""
    matrix = tf.convert_to_tensor(log_probs)
    if not matrix.dtype.is_floating:
        raise ValueError(f"`log_probs` must be floating point. Received: dtype={matrix.dtype.name}")
    if matrix.shape.rank != 2 or 0 in matrix.shape:
        raise ValueError(f"`log_probs` must be [N, K] with at least one row and one column. Received: shape {tuple(matrix.shape)}")
    return tf.cast(matrix, tf.float32)


def _padded_rows(num_rows: int, block_rows: int) -> int:
    """The next of eight sizes an octave, in whole blocks: XLA compiles anew for every shape, so N is rounded up to few."""
    blocks = -(-num_rows // block_rows)
    step = max(1, 2 ** (blocks.bit_length() - 4))
    return -(-blocks // step) * step * block_rows


def _pad_rows(matrix: tf.Tensor, num_rows: int) -> tf.Tensor:
    missing = num_rows - matrix.shape[0]
    return tf.pad(matrix, [[0, missing], [0, 0]]) if missing else matrix


def _complaint(log_probs: np.ndarray) -> str:
    """Which value made the compiled core refuse, for the person who has to find it."""
    wrong = np.isnan(log_probs) | (log_probs == np.inf)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        return (
            f"`log_probs` must hold neither NaN nor +inf. Received: {log_probs[row, column]} at row {row}, column {column} "
            f"({int(wrong.any(axis=1).sum())} of {len(log_probs)} rows have one). Has training diverged? Lower the learning rate"
        )
    for axis, name in ((1, "row"), (0, "column")):
        empty = np.flatnonzero((log_probs == -np.inf).all(axis=axis))
        if len(empty):
            return (
                f"`log_probs` must have a finite value in every {name}. Received: {name} {empty[0]} is all -inf ({len(empty)} such)"
            )
    return (
        "`log_probs` times `lam` overflows float32: scale the logits down. Received: "
        + f"largest magnitude {np.abs(log_probs).max():g}"
    )


@tf.function(jit_compile=True)
def _solve(
    log_probs: tf.Tensor,
    num_rows: tf.Tensor,
    lam: tf.Tensor,
    tolerance: tf.Tensor,
    max_iterations: tf.Tensor,
    potentials: tf.Tensor,
    block_rows: int,
) -> tuple[tf.Tensor, ...]:
    """The float32 core: (valid, labels [padded N], potentials [K], marginal error, iterations).

    XLA drops assertions in silence, so bad input comes back as `valid` false. The number of blocks visited follows `num_rows`
    at run time: rows that only pad cost memory, not time.
    """
    num_clusters = log_probs.shape[1]
    scores = lam * tf.reshape(log_probs, [-1, block_rows, num_clusters])
    num_blocks = (num_rows + block_rows - 1) // block_rows
    is_row = tf.reshape(tf.range(log_probs.shape[0]) < num_rows, [-1, block_rows, 1])
    row_max = tf.reduce_max(scores, axis=2)
    column_max = tf.reduce_max(tf.where(is_row, scores, -np.inf), axis=[0, 1])
    valid = (
        ~tf.reduce_any(tf.math.is_nan(scores) | (scores == np.inf))
        & tf.reduce_all(row_max > -np.inf)
        & tf.reduce_all(column_max > -np.inf)
    )
    target = tf.constant(1.0 / num_clusters)
    count = tf.cast(num_rows, tf.float32)

    def column_mass(kernel: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """mean_i softmax_i [K]: each block is scaled to unit rows and summed over its columns while it is in the cache."""

        def add_block(block: tf.Tensor, mass: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = kernel[block]
            row_sum = tf.linalg.matvec(rows, weights)
            scale = tf.where(row_sum > 0, 1.0 / row_sum, 0.0)
            return block + 1, mass + tf.linalg.matvec(rows, scale, transpose_a=True)

        _, mass = tf.while_loop(lambda block, _: block < num_blocks, add_block, [0, tf.zeros([num_clusters])])
        return weights * mass / count

    def absorb_and_iterate(v: tf.Tensor, error: tf.Tensor, iterations: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Makes the kernel under the potentials `v`, then iterates until done or until they have drifted too far from it."""
        absorbed = v
        shifted = scores + v
        kernel = tf.where(is_row, tf.exp(shifted - tf.reduce_max(shifted, axis=2, keepdims=True)), 0.0)

        def drift(v: tf.Tensor) -> tf.Tensor:
            return 0.5 * (tf.reduce_max(v - absorbed) - tf.reduce_min(v - absorbed))

        def iterate(v: tf.Tensor, _error: tf.Tensor, iterations: tf.Tensor) -> tuple[tf.Tensor, ...]:
            moved = v - absorbed
            mass = column_mass(kernel, tf.exp(moved - 0.5 * (tf.reduce_max(moved) + tf.reduce_min(moved))))
            error = tf.reduce_sum(tf.abs(mass - target))
            step = tf.math.log(target) - tf.math.log(tf.maximum(mass, 1e-30))
            step = tf.clip_by_value(step, -_MAX_STEP, _MAX_STEP)
            # the error belongs to the potentials that it was measured at, so the last step is not taken
            last = (error <= tolerance) | (iterations + 1 >= max_iterations)
            return tf.where(last, v, v + step), error, iterations + 1

        def unfinished(v: tf.Tensor, error: tf.Tensor, iterations: tf.Tensor) -> tf.Tensor:
            return (error > tolerance) & (iterations < max_iterations) & (drift(v) <= _MAX_DRIFT)

        v, error, iterations = tf.while_loop(unfinished, iterate, [v, error, iterations])
        return v - tf.reduce_mean(v), error, iterations

    v, error, iterations = tf.while_loop(
        lambda _v, error, iterations: valid & (error > tolerance) & (iterations < max_iterations),
        absorb_and_iterate,
        [potentials - tf.reduce_mean(potentials), tf.constant(np.inf), 0],
    )
    labels = tf.argmax(scores + v, axis=2, output_type=tf.int64)
    return valid, tf.reshape(labels, [-1]), v, error, iterations
