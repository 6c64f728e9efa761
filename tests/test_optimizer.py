"""The optimizer and its learning rates, against PyTorch's formulas."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from sela_tf.training.optimizer import CoupledSGD, learning_rate_schedule


class TestOptimizer:
    def test_is_pytorchs_sgd(self, rng):
        weight = keras.Variable(rng.normal(size=(4, 3)).astype(np.float32))
        expected, velocity = np.asarray(weight, np.float64).copy(), np.zeros((4, 3))
        schedule = learning_rate_schedule(0.1, schedule="step", epochs=4, steps_per_epoch=5, drops=(0.5,))
        optimizer = CoupledSGD(schedule, momentum=0.9, coupled_weight_decay=0.01)
        for step in range(20):
            gradient = rng.normal(size=(4, 3)).astype(np.float32)
            optimizer.apply_gradients([(gradient, weight)])
            velocity = 0.9 * velocity + gradient + 0.01 * expected
            expected = expected - (0.1 if step < 10 else 0.01) * velocity
            np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)

    def test_drops_at_whole_epochs(self):
        """150, 300, 350 of 400; and 4, 8, 9 of 10."""
        for epochs, drops in ((400, (150, 300, 350)), (10, (4, 8, 9))):
            rate = learning_rate_schedule(1.0, schedule="step", epochs=epochs, steps_per_epoch=3, drops=(0.375, 0.75, 0.875))
            for i, drop in enumerate(drops):
                assert float(rate(3 * drop - 1)) == pytest.approx(0.1**i)
                assert float(rate(3 * drop)) == pytest.approx(0.1 ** (i + 1))

    def test_no_drops(self):
        rate = learning_rate_schedule(0.2, schedule="step", epochs=10, steps_per_epoch=10, drops=())
        assert [float(rate(step)) for step in (0, 50, 99)] == pytest.approx([0.2] * 3)

    def test_cosine(self):
        rate = learning_rate_schedule(0.2, schedule="cosine", epochs=10, steps_per_epoch=10, drops=())
        assert [float(rate(step)) for step in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0.0], abs=1e-6)

    def test_config_round_trip(self):
        twin = CoupledSGD.from_config(CoupledSGD(0.3, momentum=0.8, coupled_weight_decay=0.02).get_config())
        assert (twin.momentum, twin.coupled_weight_decay, float(twin.learning_rate)) == pytest.approx((0.8, 0.02, 0.3))
