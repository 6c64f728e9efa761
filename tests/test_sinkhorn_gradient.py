"""The gradient of `sinkhorn_op`, by finite differences."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tensorflow as tf
from user_model import slow_but_on_lanes

from sela_tf.transport.sinkhorn_op import sinkhorn_op


class TestGradient:
    """The gradient of a function of the plan and the potentials."""

    @staticmethod
    def value(log_probs, lam, weights, differentiable=True):
        result = sinkhorn_op(log_probs, lam=lam, tolerance=1e-13, max_iterations=20_000, differentiable=differentiable)
        return tf.reduce_sum(result.plan * weights) + tf.tensordot(result.potentials, weights[0], 1)

    @pytest.mark.parametrize("jit_compile", [slow_but_on_lanes(False), True])
    def test_is_that_of_finite_differences(self, rng, jit_compile):
        log_probs = tf.constant(oracle.log_probs(rng, 12, 5), tf.float64)
        lam, weights = tf.constant(3.0, tf.float64), tf.constant(rng.normal(size=(12, 5)))

        @tf.function(jit_compile=jit_compile)
        def gradients(log_probs, lam):
            with tf.GradientTape() as tape:
                tape.watch([log_probs, lam])
                value = self.value(log_probs, lam, weights)
            return tape.gradient(value, [log_probs, lam])

        by_log_probs, by_lam = gradients(log_probs, lam)
        for _ in range(4):
            direction = rng.normal(size=log_probs.shape) * 1e-5
            change = self.value(log_probs + direction, lam, weights) - self.value(log_probs - direction, lam, weights)
            assert float(tf.reduce_sum(by_log_probs * direction)) == pytest.approx(float(change) / 2, rel=1e-5)
        change = self.value(log_probs, lam + 1e-5, weights) - self.value(log_probs, lam - 1e-5, weights)
        assert float(by_lam) == pytest.approx(float(change) / 2e-5, rel=1e-5)

    def test_is_none_by_default(self, rng):
        log_probs = tf.constant(oracle.log_probs(rng, 12, 5))
        with tf.GradientTape() as tape:
            tape.watch(log_probs)
            value = self.value(log_probs, 3.0, tf.ones([12, 5]), differentiable=False)
        assert tape.gradient(value, log_probs) is None

    def test_is_finite_where_rows_are_certain(self):
        log_probs = tf.constant(np.where(np.arange(12)[:, np.newaxis] % 3 == np.arange(3), 0, -200), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(log_probs)
            value = self.value(log_probs, 25.0, tf.random.stateless_normal([12, 3], [0, 0]))
        assert np.isfinite(tape.gradient(value, log_probs)).all()

    def test_float32_and_forbidden_clusters(self, rng):
        log_probs, weights = oracle.log_probs(rng, 300, 6), rng.normal(size=(300, 6))
        log_probs[:50, 0] = -np.inf
        found = []
        for dtype in (tf.float32, tf.float64):
            seen = tf.constant(log_probs, dtype)
            with tf.GradientTape() as tape:
                tape.watch(seen)
                result = sinkhorn_op(seen, lam=5.0, tolerance=1e-6, max_iterations=1000, differentiable=True)
                value = tf.reduce_sum(result.plan * tf.constant(weights, dtype))
            found.append(tape.gradient(value, seen).numpy())
        assert np.isfinite(found[0]).all()
        assert (found[0][:50, 0] == 0).all()
        np.testing.assert_allclose(found[0], found[1], atol=1e-3 * np.abs(found[1]).max())

    @pytest.mark.parametrize("jit_compile", [None, True])
    def test_other_tapes_may_watch(self, rng, jit_compile):
        """A tape that is persistent, or within another one, finds the same; a second derivative is refused."""
        log_probs, weights = tf.constant(oracle.log_probs(rng, 12, 5)), tf.ones([12, 5]) * tf.range(5.0)

        def gradients(log_probs):
            with tf.GradientTape(persistent=True) as outer:
                outer.watch(log_probs)
                with tf.GradientTape() as inner:
                    inner.watch(log_probs)
                    inner_value = self.value(log_probs, 3.0, weights)
                found = inner.gradient(inner_value, log_probs)
                value = self.value(log_probs, 3.0, weights)
            return found, outer.gradient(value, log_probs), outer

        first, persistent, _ = gradients(log_probs)
        np.testing.assert_allclose(first, persistent, rtol=1e-6)
        assert np.abs(first).max() > 0
        if jit_compile:
            in_graph = tf.function(lambda log_probs: gradients(log_probs)[:2], jit_compile=True)(log_probs)
            np.testing.assert_allclose(in_graph, [first, persistent], atol=1e-6)

        def second():
            with tf.GradientTape() as outer:
                outer.watch(log_probs)
                found = gradients(log_probs)[0]
            return outer.gradient(found, log_probs)

        with pytest.raises(NotImplementedError, match="first derivatives only"):
            second()

    def test_of_lam_where_clusters_are_forbidden(self, rng):
        log_probs, weights = oracle.log_probs(rng, 30, 4).astype(np.float64), tf.constant(rng.normal(size=(30, 4)))
        log_probs[:5, 0] = -np.inf
        lam = tf.constant(3.0, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(lam)
            value = self.value(log_probs, lam, weights)
        change = self.value(log_probs, lam + 1e-5, weights) - self.value(log_probs, lam - 1e-5, weights)
        assert float(tape.gradient(value, lam)) == pytest.approx(float(change) / 2e-5, rel=1e-5)
