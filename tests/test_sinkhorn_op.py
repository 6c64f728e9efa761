"""Tests of the transport as an op: against the float64 oracle and `sinkhorn`, and in every kind of graph."""

from __future__ import annotations

import os

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from fixtures import ROOT, run_python
from user_model import slow, slow_but_on_lanes

from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.transport.sinkhorn_op import _solve, sinkhorn_op


def error_of(log_probs: np.ndarray, lam: float, potentials: tf.Tensor) -> float:
    """The L1 error of the clusters' shares at some potentials, in float64."""
    mass = oracle.marginals(lam * log_probs.astype(np.float64), potentials.numpy().astype(np.float64))
    return float(np.abs(mass - 1 / len(mass)).sum())


@pytest.mark.parametrize(
    ("num_rows", "num_clusters", "lam"), [slow(3000, 32, 25.0), slow(2000, 64, 10.0), (300, 7, 100.0), (130, 128, 25.0)]
)
def test_equals_the_float64_optimum_and_sinkhorn(rng, num_rows, num_clusters, lam):
    log_probs = oracle.log_probs(rng, num_rows, num_clusters)
    result = sinkhorn_op(log_probs, lam=lam, tolerance=1e-4, max_iterations=5000)
    best = oracle.sinkhorn(log_probs, lam)
    assert result.converged
    assert (result.labels.numpy() == (lam * log_probs + best).argmax(axis=1)).mean() >= 0.999
    assert (result.labels.numpy() == sinkhorn(log_probs, lam=lam, tolerance=1e-4).labels).mean() >= 0.999
    scores = lam * log_probs.astype(np.float64)
    assert oracle.dual(scores, best) - oracle.dual(scores, result.potentials.numpy().astype(np.float64)) < 1e-4


@pytest.mark.parametrize("name", [name if name in ("prime", "K = N, one-hot") else slow(name) for name in oracle.HARD])
def test_solves_hard_problems(rng, name):
    log_probs, lam = oracle.hard_problem(name, rng)
    result = sinkhorn_op(log_probs, lam=lam, max_iterations=50_000)
    assert result.converged
    assert error_of(log_probs, lam, result.potentials) == pytest.approx(float(result.marginal_error), rel=0.02, abs=1e-5)
    expected = sinkhorn(log_probs, lam=lam)
    assert (result.labels.numpy() == expected.labels).mean() >= 0.99


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_makes_the_plain_iterations(rng, num_iterations):
    log_probs = oracle.log_probs(rng, 256, 12)
    result = sinkhorn_op(log_probs, lam=20.0, tolerance=0.0, max_iterations=num_iterations)
    expected = oracle.sinkhorn(log_probs, 20.0, tolerance=0.0, max_iterations=num_iterations)
    assert int(result.num_iterations) == num_iterations
    assert not result.converged
    np.testing.assert_allclose(result.potentials, expected, atol=1e-4)
    assert float(result.marginal_error) == pytest.approx(error_of(log_probs, 20.0, result.potentials), rel=1e-3)
    plan = np.exp(20.0 * log_probs + result.potentials.numpy())
    np.testing.assert_allclose(result.plan, plan / plan.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(result.labels, (np.float32(20.0) * log_probs + result.potentials).numpy().argmax(axis=1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_computes_in_float32_or_wider(rng, dtype):
    log_probs = tf.cast(oracle.log_probs(rng, 500, 10), dtype)
    result = sinkhorn_op(log_probs, lam=10.0, tolerance=1e-5, max_iterations=1000)
    wide = "float64" if dtype == "float64" else "float32"
    assert result.plan.dtype == result.potentials.dtype == result.marginal_error.dtype == wide
    assert result.labels.dtype == tf.int64
    assert result.num_iterations.dtype == tf.int32
    seen = tf.cast(log_probs, tf.float64).numpy()
    np.testing.assert_allclose(result.potentials, oracle.sinkhorn(seen, 10.0), atol=1e-3)
    exact = sinkhorn_op(tf.cast(log_probs, tf.float64), lam=10.0, tolerance=1e-12, max_iterations=10_000)
    assert error_of(seen, 10.0, exact.potentials) < 1e-11


@pytest.mark.parametrize(("num_rows", "num_clusters"), [(1, 1), (1, 5), (5, 1), (2, 3), (33, 7), (64, 9), (65, 8)])
def test_any_batch_size(rng, num_rows, num_clusters):
    log_probs = rng.normal(size=(num_rows, num_clusters)).astype(np.float32)
    result = sinkhorn_op(log_probs, lam=2.0, max_iterations=1000)
    assert result.plan.shape == log_probs.shape
    assert result.converged
    assert error_of(log_probs, 2.0, result.potentials) < 1.1e-3


def test_warm_start_takes_fewer_iterations(rng):
    log_probs = oracle.log_probs(rng, 1000, 32)
    cold = sinkhorn_op(log_probs)
    again = sinkhorn_op(log_probs, initial_potentials=cold.potentials.numpy())
    assert int(cold.num_iterations) > 10
    assert int(again.num_iterations) == 0
    np.testing.assert_allclose(again.plan, cold.plan, atol=1e-4)
    other = sinkhorn_op(log_probs[:500], initial_potentials=cold.potentials)
    assert int(other.num_iterations) < int(sinkhorn_op(log_probs[:500]).num_iterations)


def test_sharp_rows_underflow_without_harm(rng):
    """At lam 100 most of exp(lam log p) is 0 in float32; a third of the clusters is far behind for every row."""
    log_probs = oracle.log_probs(rng, 500, 12, spread=5.0)
    log_probs[:, :4] -= 30
    assert (np.exp(np.float32(100) * log_probs) == 0).mean() > 0.8
    result = sinkhorn_op(log_probs, lam=100.0, max_iterations=20_000)
    assert result.converged
    assert error_of(log_probs, 100.0, result.potentials) < 1.1e-3
    sizes = np.bincount(result.labels, minlength=12)
    assert sizes.min() > 0


def test_minus_infinity_is_a_forbidden_cluster(rng):
    log_probs = oracle.log_probs(rng, 400, 4)
    log_probs[:100, 0] = -np.inf
    result = sinkhorn_op(log_probs, max_iterations=1000)
    assert result.converged
    assert (result.plan.numpy()[:100, 0] == 0).all()
    log_probs[:, 0] = -np.inf  # No row is left for the cluster: the solve ends, and says how far it came.
    result = sinkhorn_op(log_probs)
    assert not result.converged
    assert float(result.marginal_error) >= 0.25
    assert np.isfinite(result.plan).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_error_is_nan_where_values_are_wrong(value):
    log_probs = np.zeros((6, 3), np.float32)
    log_probs[2] = value
    result = sinkhorn_op(log_probs)
    assert np.isnan(result.marginal_error)
    assert not result.converged
    assert int(result.num_iterations) == 0


def test_refuses_what_does_not_fit():
    log_probs = np.zeros((6, 3), np.float32)
    for arguments, message in (
        ({"log_probs": np.zeros((6, 3), np.int32)}, "`log_probs` must be floating point. Received: dtype=int32"),
        ({"log_probs": np.zeros(6, np.float32)}, r"must be \[B, K\].*\(6,\)"),
        ({"log_probs": np.zeros((0, 3), np.float32)}, r"at least one row.*\(0, 3\)"),
        ({"initial_potentials": np.zeros(4)}, r"`initial_potentials` must be \[K\] = \[3\] numbers. Received: shape \(4,\)"),
        ({"initial_potentials": np.zeros(3, complex)}, "numbers. Received: .*complex128"),
        ({"lam": "25"}, "`lam` must be a positive float32. Received: lam='25'"),
        ({"lam": [25.0]}, r"`lam` must be a positive float32. Received: lam=\[25.0\]"),
        ({"lam": 1e39}, "`lam` must be a positive float32. Received: lam=1e\\+39"),
        ({"lam": tf.constant([25.0])}, r"`lam` must be a scalar. Received: a tensor of shape \(1,\)"),
        ({"tolerance": None}, "`tolerance` must be a number, at least 0. Received: tolerance=None"),
        ({"tolerance": tf.constant([0.1, 0.2])}, "`tolerance` must be a scalar"),
        ({"lam": 0.0}, "`lam` must be a positive float32. Received: lam=0.0"),
        ({"lam": np.nan}, "`lam` must be a positive float32"),
        ({"tolerance": -1.0}, "`tolerance` must be a number, at least 0. Received: tolerance=-1.0"),
        ({"max_iterations": 0}, "`max_iterations` must be a positive int32. Received: max_iterations=0"),
        ({"max_iterations": 2.5}, "`max_iterations` must be a positive int32"),
    ):
        with pytest.raises(ValueError, match=message):
            sinkhorn_op(**{"log_probs": log_probs, **arguments})


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rows", [None, 100])
def test_in_a_graph(rng, jit_compile, rows):
    log_probs = oracle.log_probs(rng, 100, 8)

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec([rows, 8]), tf.TensorSpec([])])
    def in_graph(log_probs, lam):
        result = sinkhorn_op(log_probs, lam=lam)
        return result, result.labels

    result, labels = in_graph(log_probs, 10.0)
    expected = sinkhorn_op(log_probs, lam=10.0)
    np.testing.assert_allclose(result.plan, expected.plan, atol=1e-5)
    np.testing.assert_array_equal(labels, expected.labels)
    assert int(result.num_iterations) == int(expected.num_iterations)


def test_takes_numbers_of_numpy(rng):
    log_probs = oracle.log_probs(rng, 20, 4)
    found = sinkhorn_op(log_probs, lam=np.float64(10.0), tolerance=np.float32(0.0), max_iterations=np.int64(3))
    np.testing.assert_array_equal(found.plan, sinkhorn_op(log_probs, lam=10.0, tolerance=0.0, max_iterations=3).plan)


def test_in_a_data_set(rng):
    batches = oracle.log_probs(rng, 120, 8).reshape(4, 30, 8)
    mapped = tf.data.Dataset.from_tensor_slices(batches).map(lambda rows: sinkhorn_op(rows, lam=10.0).plan, num_parallel_calls=4)
    for rows, plan in zip(batches, mapped, strict=True):
        np.testing.assert_allclose(plan, sinkhorn_op(rows, lam=10.0).plan, atol=1e-5)


def test_threads_share_no_ynnpack_call(rng):
    """TensorFlow 2.21 crashes now and then where threads share an executable that calls YNNPACK; replicas are threads."""
    arguments = (tf.zeros([512, 3000]), tf.constant(20.0), tf.zeros(3000), tf.constant(0.0), tf.constant(3))
    assert "ynn" not in _solve.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")


class Codes(keras.layers.Layer):
    """The transport as a layer."""

    def call(self, inputs):
        return sinkhorn_op(inputs, lam=10.0).plan


class StepOfCodes(keras.Model):
    """A model whose training step predicts the transport's plan of its own outputs."""

    def train_step(self, data):
        with tf.GradientTape() as tape:
            logits = self(data, training=True)
            codes = sinkhorn_op(logits, lam=5.0, tolerance=0.0, max_iterations=3).plan
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(codes, logits))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        return {"cross_entropy": loss}


@pytest.mark.parametrize("jit_compile", [slow_but_on_lanes(False), True])
def test_in_a_keras_layer_and_train_step(rng, jit_compile):
    keras.utils.set_random_seed(0)
    features = rng.normal(size=(64, 6)).astype(np.float32)
    inputs = keras.Input((6,))
    logits = keras.layers.Dense(4)(inputs)
    model = keras.Model(inputs, Codes()(logits))
    np.testing.assert_allclose(
        model.predict(features, batch_size=64, verbose=0),
        sinkhorn_op(keras.Model(inputs, logits)(features), lam=10.0).plan,
        atol=1e-4,
    )
    model = StepOfCodes(inputs, logits)
    model.compile(keras.optimizers.SGD(0.5), jit_compile=jit_compile)
    losses = model.fit(features, batch_size=32, epochs=5, verbose=0).history["cross_entropy"]
    assert losses[-1] < losses[0]


_TWO_REPLICAS = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import oracle
from sela_tf.transport.sinkhorn_op import sinkhorn_op

# The parts of the global batch are unequal.
rows = oracle.log_probs(np.random.default_rng(0), 300, 16)
parts = [rows[:100], rows[100:]]
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
halves = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(parts[context.replica_id_in_sync_group])
)
whole = sinkhorn_op(rows, lam=10.0, tolerance=0.0, max_iterations=20)
run = lambda rows, **more: sinkhorn_op(rows, **{"lam": 10.0, "max_iterations": 20, **more})
for step in (lambda: strategy.run(run, args=(halves,)), tf.function(lambda: strategy.run(run, args=(halves,)))):
    for _ in range(5):
        result = step()
        locals_of = strategy.experimental_local_results
        np.testing.assert_allclose(np.concatenate(locals_of(result.plan)), whole.plan, atol=1e-5)
        first, second = locals_of(result.potentials)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, whole.potentials, atol=1e-4)
        for error in locals_of(result.marginal_error):
            np.testing.assert_allclose(error, whole.marginal_error, atol=1e-6)
        assert [int(n) for n in locals_of(result.num_iterations)] == [20, 20]
        assert all(bool(done) == (float(whole.marginal_error) <= 1e-3) for done in locals_of(result.converged))
# One replica may have no row of the last batch.
last = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(rows[:1] if context.replica_id_in_sync_group == 0 else rows[:0])
)
alone = strategy.experimental_local_results(strategy.run(run, args=(last,)).plan)
np.testing.assert_allclose(alone[0], sinkhorn_op(rows[:1], lam=10.0, max_iterations=20).plan, atol=1e-5)
assert alone[1].shape == (0, 16)
for wrong in ({"differentiable": True}, {"max_iterations": 101}):
    try:
        strategy.run(run, args=(halves,), kwargs=wrong)
        raise SystemExit("not refused")
    except ValueError as error:
        assert f"Received: {[*wrong][0]}=" in str(error), error

# Outside of the replicas, in the strategy's scope, it is the usual op.
with strategy.scope():
    np.testing.assert_allclose(sinkhorn_op(rows, lam=10.0, tolerance=0.0, max_iterations=20).plan, whole.plan, atol=1e-6)

class Step(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            logits = self(data, training=True)
            codes = sinkhorn_op(logits, lam=5.0, max_iterations=3).plan
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(codes, logits))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables))
        return {"cross_entropy": loss}

keras.utils.set_random_seed(0)
with strategy.scope():
    inputs = keras.Input((16,))
    model = Step(inputs, keras.layers.Dense(4)(inputs))
    model.compile(keras.optimizers.SGD(0.05), jit_compile=False)
losses = model.fit(tf.data.Dataset.from_tensor_slices(rows).batch(100), epochs=4, shuffle=False, verbose=0).history["cross_entropy"]
assert losses[-1] < losses[0], losses
"""


@pytest.mark.slow
@pytest.mark.lane
def test_two_replicas():
    done = run_python(_TWO_REPLICAS, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    assert done.returncode == 0, done.stderr
