"""The iteration of `sinkhorn_op` on a kernel that stays stored, for compiled code: functions of tensors, without control of Python.

The kernel is exp(s_ik + v0_k - max_k (s_ik + v0_k)), stored at potentials v0. One iteration is two products of it with a vector, without
exponentials. It is stored anew when the potentials have drifted too far from v0 for the entries that were rounded to 0 to be negligible.
"Stabilisation by absorption": B. Schmitzer, Stabilized sparse scaling algorithms for entropy regularized transport problems, SIAM J. Sci.
Comput. 2019.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# The kernel is stored anew when one potential has drifted by this much against another. Single precision reaches down to exp(-87) of a
# row's largest entry, so that entries that were rounded to 0 then still weigh less than exp(-27) of their row.
_MAX_DRIFT = 60.0
# A row's maximum is taken over this many halvings of its width: XLA's own maximum compares one entry after the other.
_HALVINGS = 3
# The linear system of the gradient is solved to this many units in the last place of the dtype.
_GRADIENT_ULPS = 64
_MAX_GRADIENT_ITERATIONS = 1000


class StoredKernel(NamedTuple):
    """The kernel as it was stored, and what was measured on it last."""

    entries: tf.Tensor
    """The entries exp(s_ik + v0_k - max_k (s_ik + v0_k)), [B, K]."""
    potentials: tf.Tensor
    """The potentials v0 at which it was stored, [K]."""
    drift: tf.Tensor
    """The potentials of the measurement, less v0, [K]."""
    per_row: tf.Tensor
    """The scaling of the rows, [B]: the plan is scaling * entries * per_row."""
    sums: tf.Tensor
    """The sums of the plan's columns, [K]."""

    @property
    def plan(self) -> tf.Tensor:
        """The plan, [B, K]."""
        return self.entries * _scaling(self.drift) * self.per_row[:, tf.newaxis]


def _scaling(drift: tf.Tensor) -> tf.Tensor:
    """Returns the scaling of the kernel's columns, [K], up to a factor."""
    return tf.exp(drift - tf.reduce_max(drift))


def _measure(entries: tf.Tensor, potentials: tf.Tensor, drift: tf.Tensor) -> StoredKernel:
    """Measures a stored kernel at potentials that have drifted."""
    scaling = _scaling(drift)
    per_row = 1 / tf.linalg.matvec(entries, scaling)
    return StoredKernel(entries, potentials, drift, per_row, scaling * tf.linalg.matvec(entries, per_row, transpose_a=True))


def store(log_probs: tf.Tensor, lam: tf.Tensor, potentials: tf.Tensor) -> StoredKernel:
    """Stores the kernel at `potentials`, and measures it there."""
    scores = lam * tf.cast(log_probs, lam.dtype) + potentials
    return _measure(tf.exp(scores - _row_maxima(scores)), potentials, tf.zeros_like(potentials))


def _row_maxima(scores: tf.Tensor) -> tf.Tensor:
    """Returns the maximum of each row of scores, [B, 1].

    The last maxima are those of integers in the order of the numbers, because XLA gives maxima of numbers to YNNPACK, which is not safe where
    threads share an executable (passes.py), as replicas may.
    """
    for _ in range(_HALVINGS):
        width = tf.shape(scores)[1]
        scores = tf.maximum(scores[:, : (width + 1) // 2], scores[:, width // 2 :])
    integer = tf.int64 if scores.dtype == tf.float64 else tf.int32

    def flip(bits: tf.Tensor) -> tf.Tensor:
        """Reverses the order of the bits of negative numbers, which is its own inverse."""
        return tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, integer.max), bits)

    return tf.bitcast(flip(tf.reduce_max(flip(tf.bitcast(scores, integer)), axis=1, keepdims=True)), scores.dtype)


def marginal_error(sums: tf.Tensor) -> tf.Tensor:
    """Returns the L1 error of the clusters' shares, a scalar, from the sums [K] of the plan's columns."""
    return tf.reduce_sum(tf.abs(sums / tf.reduce_sum(sums) - 1 / tf.cast(tf.size(sums), sums.dtype)))


def sinkhorn_step(sums: tf.Tensor) -> tf.Tensor:
    """Returns Sinkhorn's step of the potentials, [K] of mean zero, from the sums [K] of the plan's columns."""
    # Where a sum underflows the step is too short, but far enough for the kernel to be stored anew, which then has a larger sum.
    step = -tf.math.log(tf.maximum(sums, np.finfo(sums.dtype.as_numpy_dtype).tiny))
    return step - tf.reduce_mean(step)


def iterate(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: tf.Tensor
) -> tuple[StoredKernel, tf.Tensor]:
    """Updates the potentials until the error is at most the tolerance; returns the last measurement, and the number of updates."""

    def goes_on(num_iterations: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        return (num_iterations < max_iterations) & (marginal_error(sums) > tolerance)

    def iterate_on(kernel: StoredKernel, num_iterations: tf.Tensor) -> tuple[StoredKernel, tf.Tensor]:
        """Iterates without storing the kernel anew."""

        def is_near(num_iterations: tf.Tensor, drift: tf.Tensor, per_row: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
            new = drift + sinkhorn_step(sums)
            return goes_on(num_iterations, sums) & (tf.reduce_max(new) - tf.reduce_min(new) <= _MAX_DRIFT)

        def update(num_iterations: tf.Tensor, drift: tf.Tensor, per_row: tf.Tensor, sums: tf.Tensor) -> tuple:
            new = _measure(kernel.entries, kernel.potentials, drift + sinkhorn_step(sums))
            return num_iterations + 1, new.drift, new.per_row, new.sums

        state = (num_iterations, kernel.drift, kernel.per_row, kernel.sums)
        num_iterations, drift, per_row, sums = tf.while_loop(is_near, update, state)
        return kernel._replace(drift=drift, per_row=per_row, sums=sums), num_iterations

    def store_anew(kernel: StoredKernel, num_iterations: tf.Tensor) -> tuple[StoredKernel, tf.Tensor]:
        potentials = kernel.potentials + kernel.drift + sinkhorn_step(kernel.sums)
        return iterate_on(store(log_probs, lam, potentials - tf.reduce_mean(potentials)), num_iterations + 1)

    first = iterate_on(store(log_probs, lam, start), tf.constant(0))
    return tf.while_loop(lambda kernel, num_iterations: goes_on(num_iterations, kernel.sums), store_anew, first)


def potentials_gradient(plan: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient with respect to the scores, [B, K], of a function whose gradient with respect to the potentials is `upstream`.

    The shares m(s, v) = mean_i q_i stay 1/K, so that H dv = -mean_i (diag q_i - q_i q_i^T) ds_i with H = diag m - mean_i q_i q_i^T.
    Conjugate gradients solve H w = upstream without forming H [K, K]. Where rows are certain of their clusters H is 0 in more directions
    than one; then w is finite, and is 0 in them.
    """
    num_rows, mass = tf.cast(tf.shape(plan)[0], plan.dtype), tf.reduce_mean(plan, axis=0)
    # Potentials of mean zero do not change by a constant, in which direction H is 0.
    residual = upstream - tf.reduce_mean(upstream)
    enough = _GRADIENT_ULPS * np.finfo(plan.dtype.as_numpy_dtype).eps * tf.norm(residual)

    def hessian(vector: tf.Tensor) -> tf.Tensor:
        return mass * vector - tf.linalg.matvec(plan, tf.linalg.matvec(plan, vector), transpose_a=True) / num_rows

    def step(n: tf.Tensor, w: tf.Tensor, residual: tf.Tensor, direction: tf.Tensor, slope: tf.Tensor) -> tuple:
        image = hessian(direction)
        length = tf.math.divide_no_nan(slope, tf.tensordot(direction, image, 1))
        residual -= length * image
        scaled = tf.math.divide_no_nan(residual, mass)
        new = tf.tensordot(residual, scaled, 1)
        return n + 1, w + length * direction, residual, scaled + tf.math.divide_no_nan(new, slope) * direction, new

    def is_far(n: tf.Tensor, w: tf.Tensor, residual: tf.Tensor, direction: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        return (n < _MAX_GRADIENT_ITERATIONS) & (tf.norm(residual) > enough)

    scaled = tf.math.divide_no_nan(residual, mass)
    state = (tf.constant(0), tf.zeros_like(residual), residual, scaled, tf.tensordot(residual, scaled, 1))
    w = tf.while_loop(is_far, step, state)[1]
    return -plan * (w - tf.linalg.matvec(plan, w)[:, tf.newaxis]) / num_rows
