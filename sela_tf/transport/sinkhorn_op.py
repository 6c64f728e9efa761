"""The entropic transport as an op of a graph: `sinkhorn_op`, for the rows of a batch.

It solves the problem of `sela_tf.sinkhorn`, equal clusters, by the plain iteration in the log domain (sinkhorn.py has the problem, M. Cuturi,
Sinkhorn distances, NIPS 2013, the iteration). XLA compiles all of it as one function. The kernel exp(s_ik + v0_k - max) is stored at
potentials v0, and an iteration is two products of it with a vector, without exponentials. It is stored anew when the potentials have
drifted too far from v0 for the entries that were rounded to 0 to be negligible.

In the replica context of several replicas the clusters' sums have to be added up between compiled parts. There a fixed number of iterations is
unrolled, because an all-reduce may stand neither in compiled code nor in a loop of the graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# The kernel is stored anew when one potential has drifted by this much against another. Single precision reaches down to exp(-87) of a
# row's largest entry, so that entries that were rounded to 0 then still weigh less than exp(-27) of their row.
_MAX_DRIFT = 60.0
# A row's maximum is taken over this many halvings of its width: XLA's own maximum compares one entry after the other.
_HALVINGS = 3
# Every unrolled iteration adds a compiled part and an all-reduce to the graph.
_MAX_UNROLLED = 100
# The linear system of the gradient is solved to this many units in the last place of the dtype.
_GRADIENT_ULPS = 64
_MAX_GRADIENT_ITERATIONS = 1000


class SinkhornOpResult(NamedTuple):
    """The result of `sinkhorn_op`: the plan and the potentials, and how exact they are. All fields are tensors."""

    plan: tf.Tensor
    """The soft assignment q_i = softmax(lam * log_probs_i + potentials), [B, K], float64 for float64 and else float32. Its rows sum to 1,
    and their means over the rows to 1/K within `marginal_error`. (The plan of `sinkhorn` is q / N.)"""
    potentials: tf.Tensor
    """The logarithms of the column scaling, [K], of mean zero, in the dtype of the plan. They start the next solve."""
    marginal_error: tf.Tensor
    """The L1 error of the clusters' shares at these potentials, sum_k |mean_i q_ik - 1/K|, a scalar. NaN if `log_probs`, `lam` or
    `initial_potentials` have a NaN or +inf, or if a row is all -inf: compiled code cannot raise."""
    num_iterations: tf.Tensor
    """The number of updates of the potentials that were made, int32."""
    converged: tf.Tensor
    """True if `marginal_error` is at most the tolerance; bool."""

    @property
    def labels(self) -> tf.Tensor:
        """The cluster of each row, int64 [B]: the argmax of the plan. The clusters' sizes are nearly, not exactly, equal."""
        return tf.argmax(self.plan, axis=1, output_type=tf.int64)


def sinkhorn_op(
    log_probs: np.ndarray | tf.Tensor,
    *,
    lam: float | tf.Tensor = 25.0,
    tolerance: float | tf.Tensor = 1e-3,
    max_iterations: int = 100,
    initial_potentials: np.ndarray | tf.Tensor | None = None,
    differentiable: bool = False,
) -> SinkhornOpResult:
    """Assigns the rows of a batch to equally large clusters by optimal transport, in a graph (arXiv 1911.05371, eq. 5-8).

    It may be called eagerly, in a `tf.function` (compiled or not), a `train_step`, a Keras layer. For all images at once use
    `sela_tf.sinkhorn`, which needs fewer passes and shares them between threads.

    In the replica context of several replicas the clusters are equal over the global batch: each replica gets the plan of its own rows,
    and all get the same potentials and error. Exactly `max_iterations` iterations are made, and `tolerance` only decides `converged`. The code
    around it must not be compiled: give Keras' `compile` the argument `jit_compile=False`.

    Args:
        log_probs: [B, K], log-probabilities or logits, of any floating dtype; half precision is computed in float32. -inf forbids a
            cluster to a row. XLA compiles once for each shape.
        lam: the inverse strength of the entropic regularisation. SwAV's epsilon of 0.05 (arXiv 2006.09882) is a lam of 20, with the cosines
            of features and prototypes as `log_probs`.
        tolerance: the L1 error of the clusters' shares at which the iteration ends; 0 for exactly `max_iterations`.
        max_iterations: the number of updates of the potentials after which the iteration ends; SwAV makes 3. Sharp rows may need
            thousands. At most 100 in several replicas.
        initial_potentials: [K], the potentials of an earlier batch as a warm start; zeros if None.
        differentiable: True for gradients of `plan` and `potentials` with respect to `log_probs` and `lam`. They are those of the converged
            transport, by implicit differentiation at the potentials reached, whatever number of iterations was made. False for none,
            like `tf.stop_gradient`. Not for several replicas.

    Raises:
        ValueError: a shape or dtype does not fit, or an argument is out of range. Values of tensors are not checked.
    """
    log_probs, start = _checked_inputs(log_probs, initial_potentials)
    _check_settings(lam, tolerance, max_iterations)
    dtype = start.dtype
    lam, tolerance = tf.cast(lam, dtype), tf.cast(tolerance, dtype)
    if not differentiable:
        log_probs, lam = tf.stop_gradient(log_probs), tf.stop_gradient(lam)
    start, tolerance = tf.stop_gradient(start), tf.stop_gradient(tolerance)
    if tf.distribute.in_cross_replica_context() or tf.distribute.get_replica_context().num_replicas_in_sync == 1:
        solve = _solve_differentiably if differentiable else _solve
        return SinkhornOpResult(*solve(log_probs, lam, start, tolerance, tf.constant(max_iterations)))
    if differentiable:
        raise ValueError("`differentiable` must be False in the replica context of several replicas. Received: differentiable=True")
    if max_iterations > _MAX_UNROLLED:
        raise ValueError(
            f"`max_iterations` must be at most {_MAX_UNROLLED} in the replica context of several replicas, where iterations are unrolled. "
            f"Received: max_iterations={max_iterations}"
        )
    return _solve_in_replicas(log_probs, lam, start, tolerance, max_iterations)


def _checked_inputs(log_probs: Any, initial_potentials: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `log_probs` as a tensor, and the potentials to start from, [K] in the dtype of the computation.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    log_probs = tf.convert_to_tensor(log_probs)
    if not log_probs.dtype.is_floating:
        raise ValueError(f"`log_probs` must be floating point. Received: dtype={log_probs.dtype.name}")
    if log_probs.shape.rank != 2 or 0 in log_probs.shape or log_probs.shape[1] is None:
        raise ValueError(f"`log_probs` must be [B, K] with at least one row and K known. Received: shape {log_probs.shape}")
    num_clusters, dtype = log_probs.shape[1], tf.float64 if log_probs.dtype == tf.float64 else tf.float32
    if initial_potentials is None:
        return log_probs, tf.zeros([num_clusters], dtype)
    start = tf.convert_to_tensor(initial_potentials)
    if not start.shape.is_compatible_with([num_clusters]):
        raise ValueError(f"`initial_potentials` must be [K] = [{num_clusters}]. Received: shape {start.shape}")
    return log_probs, tf.cast(start, dtype)


def _check_settings(lam: Any, tolerance: Any, max_iterations: Any) -> None:
    """Checks the settings that are Python's numbers.

    Raises:
        ValueError: one is out of range.
    """
    is_count = isinstance(max_iterations, int | np.integer) and not isinstance(max_iterations, bool)
    for name, value, valid, bound in (
        ("lam", lam, tf.is_tensor(lam) or 0 < np.float32(lam) < np.inf, "a positive float32"),
        ("tolerance", tolerance, tf.is_tensor(tolerance) or 0 <= tolerance < np.inf, "at least 0"),
        ("max_iterations", max_iterations, is_count and 1 <= max_iterations < 2**31, "a positive int32"),
    ):
        if not valid:
            raise ValueError(f"`{name}` must be {bound}. Received: {name}={value}")


class _Kernel(NamedTuple):
    """The kernel as it was stored, and what was measured on it last."""

    entries: tf.Tensor
    """exp(s_ik + v0_k - max_k (s_ik + v0_k)), [B, K]."""
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


def _measure(entries: tf.Tensor, potentials: tf.Tensor, drift: tf.Tensor) -> _Kernel:
    """Measures a stored kernel at potentials that have drifted."""
    scaling = _scaling(drift)
    per_row = 1 / tf.linalg.matvec(entries, scaling)
    return _Kernel(entries, potentials, drift, per_row, scaling * tf.linalg.matvec(entries, per_row, transpose_a=True))


def _store(log_probs: tf.Tensor, lam: tf.Tensor, potentials: tf.Tensor) -> _Kernel:
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


def _error(sums: tf.Tensor) -> tf.Tensor:
    """Returns the L1 error of the clusters' shares, a scalar, from the sums [K] of the plan's columns."""
    return tf.reduce_sum(tf.abs(sums / tf.reduce_sum(sums) - 1 / tf.cast(tf.size(sums), sums.dtype)))


def _step(sums: tf.Tensor) -> tf.Tensor:
    """Returns Sinkhorn's step of the potentials, [K] of mean zero, from the sums [K] of the plan's columns."""
    # Where a sum underflows the step is too short, but far enough for the kernel to be stored anew, which then has a larger sum.
    step = -tf.math.log(tf.maximum(sums, np.finfo(sums.dtype.as_numpy_dtype).tiny))
    return step - tf.reduce_mean(step)


def _iterate(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: tf.Tensor
) -> tuple[_Kernel, tf.Tensor]:
    """Updates the potentials until the error is at most the tolerance; returns the last measurement, and the number of updates."""

    def goes_on(num_iterations: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        return (num_iterations < max_iterations) & (_error(sums) > tolerance)

    def iterate_on(kernel: _Kernel, num_iterations: tf.Tensor) -> tuple[_Kernel, tf.Tensor]:
        """Iterates without storing the kernel anew."""

        def is_near(num_iterations: tf.Tensor, drift: tf.Tensor, per_row: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
            new = drift + _step(sums)
            return goes_on(num_iterations, sums) & (tf.reduce_max(new) - tf.reduce_min(new) <= _MAX_DRIFT)

        def update(num_iterations: tf.Tensor, drift: tf.Tensor, per_row: tf.Tensor, sums: tf.Tensor) -> tuple:
            new = _measure(kernel.entries, kernel.potentials, drift + _step(sums))
            return num_iterations + 1, new.drift, new.per_row, new.sums

        state = (num_iterations, kernel.drift, kernel.per_row, kernel.sums)
        num_iterations, drift, per_row, sums = tf.while_loop(is_near, update, state)
        return kernel._replace(drift=drift, per_row=per_row, sums=sums), num_iterations

    def store_anew(kernel: _Kernel, num_iterations: tf.Tensor) -> tuple[_Kernel, tf.Tensor]:
        potentials = kernel.potentials + kernel.drift + _step(kernel.sums)
        return iterate_on(_store(log_probs, lam, potentials - tf.reduce_mean(potentials)), num_iterations + 1)

    first = iterate_on(_store(log_probs, lam, start), tf.constant(0))
    return tf.while_loop(lambda kernel, num_iterations: goes_on(num_iterations, kernel.sums), store_anew, first)


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _solve(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Solves in one compiled function; returns the fields of the result."""
    kernel, num_iterations = _iterate(log_probs, lam, start, tolerance, max_iterations)
    potentials, error = kernel.potentials + kernel.drift, _error(kernel.sums)
    return kernel.plan, potentials - tf.reduce_mean(potentials), error, num_iterations, error <= tolerance


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _solve_differentiably(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Solves as `_solve` does, with the gradient of the converged transport."""

    @tf.custom_gradient
    def solve(scores: tf.Tensor) -> tuple:
        plan, potentials, error, num_iterations, _ = _solve(scores, tf.ones_like(lam), start, tolerance, max_iterations)
        return (potentials, error, num_iterations), lambda upstream, *_: _potentials_gradient(plan, upstream)

    scores = lam * tf.cast(log_probs, lam.dtype)
    potentials, error, num_iterations = solve(scores)
    plan = tf.nn.softmax(scores + potentials)
    return plan, potentials, error, num_iterations, error <= tolerance


def _potentials_gradient(plan: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the gradient with respect to the scores, [B, K], of a function whose gradient with respect to the potentials is `upstream`.

    The shares m(s, v) = mean_i q_i stay 1/K, so that H dv = -mean_i (diag q_i - q_i q_i^T) ds_i with H = diag m - mean_i q_i q_i^T.
    Conjugate gradients solve H w = upstream without forming H [K, K].
    """
    num_rows, mass = tf.cast(tf.shape(plan)[0], plan.dtype), tf.reduce_mean(plan, axis=0)
    # Potentials of mean zero do not change by a constant, in which direction H is 0.
    residual = upstream - tf.reduce_mean(upstream)
    enough = _GRADIENT_ULPS * np.finfo(plan.dtype.as_numpy_dtype).eps * tf.norm(residual)

    def hessian(vector: tf.Tensor) -> tf.Tensor:
        return mass * vector - tf.linalg.matvec(plan, tf.linalg.matvec(plan, vector), transpose_a=True) / num_rows

    def step(n: tf.Tensor, w: tf.Tensor, residual: tf.Tensor, direction: tf.Tensor, slope: tf.Tensor) -> tuple:
        image = hessian(direction)
        length = slope / tf.tensordot(direction, image, 1)
        residual -= length * image
        scaled = residual / mass
        new = tf.tensordot(residual, scaled, 1)
        return n + 1, w + length * direction, residual, scaled + new / slope * direction, new

    def is_far(n: tf.Tensor, w: tf.Tensor, residual: tf.Tensor, direction: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        return (n < _MAX_GRADIENT_ITERATIONS) & (tf.norm(residual) > enough)

    scaled = residual / mass
    state = (tf.constant(0), tf.zeros_like(residual), residual, scaled, tf.tensordot(residual, scaled, 1))
    w = tf.while_loop(is_far, step, state)[1]
    return -plan * (w - tf.linalg.matvec(plan, w)[:, tf.newaxis]) / num_rows


def _solve_in_replicas(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: int
) -> SinkhornOpResult:
    """Solves for the rows of all replicas, with one all-reduce of K numbers an iteration."""
    context = tf.distribute.get_replica_context()
    potentials = start
    for _ in range(max_iterations):
        potentials += _step(context.all_reduce(tf.distribute.ReduceOp.SUM, _local_sums(log_probs, lam, potentials)))
    potentials -= tf.reduce_mean(potentials)
    plan, sums = _local_plan(log_probs, lam, potentials)
    error = _error(context.all_reduce(tf.distribute.ReduceOp.SUM, sums))
    return SinkhornOpResult(plan, potentials, error, tf.constant(max_iterations), error <= tolerance)


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _local_sums(log_probs: tf.Tensor, lam: tf.Tensor, potentials: tf.Tensor) -> tf.Tensor:
    """Returns the sums of the columns of the plan of this replica's rows, [K]."""
    return _store(log_probs, lam, potentials).sums


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _local_plan(log_probs: tf.Tensor, lam: tf.Tensor, potentials: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the plan of this replica's rows, [B, K], and the sums of its columns, [K]."""
    kernel = _store(log_probs, lam, potentials)
    return kernel.plan, kernel.sums
