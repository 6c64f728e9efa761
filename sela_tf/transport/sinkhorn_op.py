"""The entropic transport as an op of a graph: `sinkhorn_op`, for the rows of a batch.

It solves the problem of `sela_tf.sinkhorn`, equal clusters, by the plain iteration in the log domain (sinkhorn.py has the problem, M. Cuturi,
Sinkhorn distances, NIPS 2013, the iteration). XLA compiles all of it, the iteration of stored_kernel.py, as one function.

In the replica context of several replicas the clusters' sums have to be added up between compiled parts. There a fixed number of iterations is
unrolled, because an all-reduce may stand neither in compiled code nor in a loop of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.stored_kernel import iterate, marginal_error, potentials_gradient, sinkhorn_step, store

# Every unrolled iteration adds a compiled part and an all-reduce to the graph.
_MAX_UNROLLED = 100
_LARGEST_LAM = float(np.finfo(np.float32).max)


class SinkhornOpResult(NamedTuple):
    """The result of `sinkhorn_op`: the plan and the potentials, and how exact they are. All fields are tensors."""

    plan: tf.Tensor
    """The soft assignment q_i = softmax(lam * log_probs_i + potentials), [B, K], float64 for float64 and else float32. Its rows sum to 1,
    and their means over the rows to 1/K within `marginal_error`. (The plan of `sinkhorn` is q / N.)"""
    potentials: tf.Tensor
    """The logarithms of the column scaling, [K], of mean zero, in the dtype of the plan. They start the next solve."""
    marginal_error: tf.Tensor
    """The L1 error of the clusters' shares at these potentials, sum_k |mean_i q_ik - 1/K|, a scalar. NaN where the problem has
    no solution in numbers: a NaN or +inf in `log_probs`, `lam` or `initial_potentials`, a row of -inf alone, lam * log_probs beyond the
    dtype, a batch of no rows. Compiled code cannot raise."""
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
            transport, by implicit differentiation at the potentials reached, whatever number of iterations was made. First
            derivatives of `tf.GradientTape` only. False for none, like `tf.stop_gradient`. Not for several replicas.

    Raises:
        ValueError: a shape or dtype does not fit, or an argument is out of range. Values of tensors are not checked.
    """
    in_replicas = not tf.distribute.in_cross_replica_context() and tf.distribute.get_replica_context().num_replicas_in_sync > 1
    # Another replica may have rows where this one has none.
    log_probs, start = _checked_inputs(log_probs, initial_potentials, least_rows=0 if in_replicas else 1)
    lam = _checked_number("lam", lam, start.dtype, lambda value: 0 < value <= _LARGEST_LAM, "a positive float32")
    tolerance = _checked_number("tolerance", tolerance, start.dtype, lambda value: 0 <= value < np.inf, "a number, at least 0")
    is_count = isinstance(max_iterations, int | np.integer) and not isinstance(max_iterations, bool)
    if not is_count or not 1 <= max_iterations < 2**31:
        raise ValueError(f"`max_iterations` must be a positive int32. Received: max_iterations={max_iterations}")
    if not differentiable:
        log_probs, lam = tf.stop_gradient(log_probs), tf.stop_gradient(lam)
    start, tolerance = tf.stop_gradient(start), tf.stop_gradient(tolerance)
    if not in_replicas:
        solve = _solve_differentiably if differentiable else _solve
        return SinkhornOpResult(*solve(log_probs, lam, start, tolerance, tf.constant(max_iterations, tf.int32)))
    if differentiable:
        raise ValueError("`differentiable` must be False in the replica context of several replicas. Received: differentiable=True")
    if max_iterations > _MAX_UNROLLED:
        raise ValueError(
            f"`max_iterations` must be at most {_MAX_UNROLLED} in the replica context of several replicas, where iterations are unrolled. "
            f"Received: max_iterations={max_iterations}"
        )
    return _solve_in_replicas(log_probs, lam, start, tolerance, max_iterations)


def _checked_inputs(log_probs: Any, initial_potentials: Any, *, least_rows: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `log_probs` as a tensor, and the potentials to start from, [K] in the dtype of the computation.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    log_probs = tf.convert_to_tensor(log_probs)
    if not log_probs.dtype.is_floating:
        raise ValueError(f"`log_probs` must be floating point. Received: dtype={log_probs.dtype.name}")
    shape = log_probs.shape
    if shape.rank != 2 or not shape[1] or (shape[0] is not None and shape[0] < least_rows):
        raise ValueError(f"`log_probs` must be [B, K] with at least one row and K known. Received: shape {shape}")
    num_clusters, dtype = shape[1], tf.float64 if log_probs.dtype == tf.float64 else tf.float32
    if initial_potentials is None:
        return log_probs, tf.zeros([num_clusters], dtype)
    start = tf.convert_to_tensor(initial_potentials)
    if not start.shape.is_compatible_with([num_clusters]) or not (start.dtype.is_floating or start.dtype.is_integer):
        raise ValueError(
            f"`initial_potentials` must be [K] = [{num_clusters}] numbers. Received: shape {start.shape}, dtype={start.dtype.name}"
        )
    return log_probs, tf.ensure_shape(tf.cast(start, dtype), [num_clusters])


def _checked_number(name: str, value: Any, dtype: tf.DType, is_valid: Callable[[Any], bool], bound: str) -> tf.Tensor:
    """Returns a setting as a scalar tensor. The values of tensors are not checked.

    Raises:
        ValueError: it is no number, or out of range.
    """
    if tf.is_tensor(value):
        if not value.shape.is_compatible_with([]) or not (value.dtype.is_floating or value.dtype.is_integer):
            raise ValueError(f"`{name}` must be a scalar. Received: a tensor of shape {value.shape}, dtype={value.dtype.name}")
        return tf.ensure_shape(tf.cast(value, dtype), [])
    is_number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"
    if not is_number or not is_valid(value):
        raise ValueError(f"`{name}` must be {bound}. Received: {name}={value!r}")
    return tf.constant(value, dtype)


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _solve(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Solves in one compiled function; returns the fields of the result."""
    kernel, num_iterations = iterate(log_probs, lam, start, tolerance, max_iterations)
    potentials, error = kernel.potentials + kernel.drift, marginal_error(kernel.sums)
    return kernel.plan, potentials - tf.reduce_mean(potentials), error, num_iterations, error <= tolerance


def _solve_differentiably(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Solves as `_solve` does, with the gradient of the converged transport."""

    # XLA cannot differentiate the loops. Where nothing within is watched, no tape asks it to, not even one that is persistent.
    @tf.custom_gradient
    def solve(log_probs: tf.Tensor, lam: tf.Tensor) -> tuple:
        inputs = tf.stop_gradient(log_probs), tf.stop_gradient(lam)
        fields = _solve(*inputs, start, tolerance, max_iterations)

        def gradient(by_plan: tf.Tensor, by_potentials: tf.Tensor, *_: Any) -> tuple[tf.Tensor, tf.Tensor]:
            found = _gradient(*inputs, fields[0], tf.stop_gradient(by_plan), tf.stop_gradient(by_potentials))
            return _once(found[0], by_plan, log_probs, lam), _once(found[1], by_plan, log_probs, lam)

        return fields, gradient

    return solve(log_probs, lam)


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _gradient(
    log_probs: tf.Tensor, lam: tf.Tensor, plan: tf.Tensor, by_plan: tf.Tensor, by_potentials: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients with respect to `log_probs` and `lam`, from those with respect to the plan and the potentials."""
    by_scores = plan * (by_plan - tf.reduce_sum(plan * by_plan, axis=1, keepdims=True))
    by_scores += potentials_gradient(plan, by_potentials + tf.reduce_sum(by_scores, axis=0))
    # A forbidden cluster, of -inf, stays one whatever lam is.
    by_lam = tf.reduce_sum(tf.math.multiply_no_nan(tf.cast(log_probs, plan.dtype), by_scores))
    return tf.cast(lam * by_scores, log_probs.dtype), by_lam


@tf.custom_gradient
def _once(value: tf.Tensor, *sources: tf.Tensor) -> tuple:
    """Returns `value`, a gradient that follows from `sources` and has no gradient of its own."""

    def refuse(_: tf.Tensor) -> tuple:
        raise NotImplementedError("`sinkhorn_op` has first derivatives only: `differentiable=True` does not give second ones")

    return tf.identity(value), refuse


def _solve_in_replicas(
    log_probs: tf.Tensor, lam: tf.Tensor, start: tf.Tensor, tolerance: tf.Tensor, max_iterations: int
) -> SinkhornOpResult:
    """Solves for the rows of all replicas, with one all-reduce of K numbers an iteration."""
    context = tf.distribute.get_replica_context()
    potentials = start
    for _ in range(max_iterations):
        potentials += sinkhorn_step(context.all_reduce(tf.distribute.ReduceOp.SUM, _local_sums(log_probs, lam, potentials)))
    potentials -= tf.reduce_mean(potentials)
    plan, sums = _local_plan(log_probs, lam, potentials)
    error = marginal_error(context.all_reduce(tf.distribute.ReduceOp.SUM, sums))
    return SinkhornOpResult(plan, potentials, error, tf.constant(max_iterations), error <= tolerance)


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _local_sums(log_probs: tf.Tensor, lam: tf.Tensor, potentials: tf.Tensor) -> tf.Tensor:
    """Returns the sums of the columns of the plan of this replica's rows, [K]."""
    return store(log_probs, lam, potentials).sums


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _local_plan(log_probs: tf.Tensor, lam: tf.Tensor, potentials: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the plan of this replica's rows, [B, K], and the sums of its columns, [K]."""
    kernel = store(log_probs, lam, potentials)
    return kernel.plan, kernel.sums
