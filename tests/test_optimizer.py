"""The optimizers, against NumPy and PyTorch's formulas, and their learning rates."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT, run_python

from sela_tf.compat import decoupled
from sela_tf.compat.releases import IS_KERAS_3, build_optimizer, learning_rate_of, optimizer_variables
from sela_tf.models.inference import read_variable
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.optimizer import CoupledSGD, check_optimizer, learning_rate_schedule, make_optimizer

RATE, DECAY, STEPS = 0.1, 0.3, 20


class Oracle:
    """One weight in float64, decayed by learning rate x decay x weight before each step of SGDW or LAMB."""

    def __init__(self, weight: np.ndarray):
        self.weight = weight.astype(np.float64)
        self.m, self.v, self.steps = np.zeros_like(self.weight), np.zeros_like(self.weight), 0

    def decayed(self, rate: float) -> np.ndarray:
        self.steps += 1
        return self.weight - rate * DECAY * self.weight

    def sgdw(self, gradient: np.ndarray, rate: float) -> None:
        """Loshchilov and Hutter, arXiv 1711.05101, algorithm 1, with Keras' velocity, which holds the learning rate."""
        self.m = 0.9 * self.m - rate * gradient
        self.weight = self.decayed(rate) + self.m

    def lamb(self, gradient: np.ndarray, rate: float) -> None:
        """You et al., arXiv 1904.00962, algorithm 2; the decay is outside the trust ratio."""
        weight = self.decayed(rate)
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        ratio = (self.m / (1 - 0.9**self.steps)) / (np.sqrt(self.v / (1 - 0.999**self.steps)) + 1e-6)
        norm = np.linalg.norm(weight)
        self.weight = weight - rate * (norm / np.linalg.norm(ratio) if norm else 1.0) * ratio


def weights_of(rng: np.random.Generator, **options) -> list:
    """The trainable variables of a layer: a matrix and, unless it has none, a bias that begins at 0."""
    layer = keras.layers.Dense(3, **options)
    layer.build((None, 4))
    layer.trainable_variables[0].assign(rng.normal(size=(4, 3)))
    return layer.trainable_variables


@pytest.fixture(params=["sgdw", "lamb"])
def name(request) -> str:
    """An optimizer that the installed packages have."""
    if reason := decoupled.why_unavailable(request.param):
        pytest.skip(reason)
    return request.param


class TestDecoupledDecay:
    def test_is_the_oracles(self, name, rng):
        """The trust ratio of a bias that begins at 0 is 1 in the first step."""
        rates = learning_rate_schedule(RATE, schedule="cosine", epochs=4, steps_per_epoch=5, drops=())
        variables = weights_of(rng)
        oracles = [Oracle(read_variable(variable)) for variable in variables]
        optimizer = make_optimizer(name, rates, momentum=0.9, weight_decay=DECAY)
        build_optimizer(optimizer, variables)

        @tf.function
        def step(*gradients):
            optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))

        for i in range(STEPS):
            rate = RATE * 0.5 * (1 + np.cos(np.pi * i / STEPS))
            assert learning_rate_of(optimizer) == pytest.approx(rate, abs=1e-7)
            gradients = [rng.normal(size=variable.shape).astype(np.float32) for variable in variables]
            step(*map(tf.constant, gradients))
            for variable, oracle, gradient in zip(variables, oracles, gradients, strict=True):
                getattr(oracle, name)(gradient, rate)
                np.testing.assert_allclose(read_variable(variable), oracle.weight, rtol=1e-5, atol=4e-6)

    def test_the_state_is_made_before_the_first_step(self, name, rng):
        (weight,) = weights_of(rng, use_bias=False)
        rates = learning_rate_schedule(RATE, schedule="step", epochs=4, steps_per_epoch=5, drops=())
        optimizer = make_optimizer(name, rates, momentum=0.9, weight_decay=DECAY)
        build_optimizer(optimizer, [weight])
        made = optimizer_variables(optimizer)
        assert sum(variable.shape == (4, 3) for variable in made) == {"sgdw": 1, "lamb": 2}[name]
        optimizer.apply_gradients([(tf.ones((4, 3)), weight)])
        assert [id(variable) for variable in optimizer_variables(optimizer)] == [id(variable) for variable in made]
        assert any(int(read_variable(variable)) == 1 for variable in made if variable.shape == ())


class TestAnswers:
    def test_lamb_before_keras_3_5(self, monkeypatch):
        monkeypatch.setattr(decoupled, "IS_KERAS_3", True)
        monkeypatch.setattr(decoupled.keras, "__version__", "3.4.1")
        monkeypatch.delattr(decoupled.keras.optimizers, "Lamb", raising=False)
        check_optimizer("sgd")
        check_optimizer("sgdw")
        with pytest.raises(
            ConfigError, match="`optimizer=lamb` needs Keras 3.5 or newer, and this is 3.4.1: .*take `optimizer=sgdw`"
        ):
            check_optimizer("lamb")

    @pytest.mark.skipif(IS_KERAS_3, reason="tensorflow-addons is asked for on TensorFlow 2.15 only")
    def test_addons_that_are_missing_or_broken(self, tmp_path):
        """Refused before any image is looked for. Nothing is asked of them for `sgd`."""
        code = (
            f"import os, sys; os.chdir({str(tmp_path)!r}); sys.path.insert(0, '.')\n"
            "from sela_tf.train import main\n"
            "def run(name): main(['train', '--dataset=folder:nowhere', '--workdir=run', f'--optimizer={name}'])\n"
            "sys.modules['tensorflow_addons'] = None; run('sgdw'); run('sgd')\n"
            "del sys.modules['tensorflow_addons']; open('tensorflow_addons.py', 'w').write('import absent'); run('lamb')"
        )
        missing, images, broken = run_python(code, PYTHONPATH=str(ROOT)).stderr.splitlines()
        remedy = "pip install 'sela-tf[addons]', or take --optimizer=sgd"
        needs = f"needs tensorflow-addons on TensorFlow {tf.__version__}, which"
        assert missing == f"sela_tf.train: error: --optimizer=sgdw {needs} is not installed: {remedy}"
        reason = "cannot be imported (ModuleNotFoundError: No module named 'absent')"
        assert broken == f"sela_tf.train: error: --optimizer=lamb {needs} {reason}: {remedy}"
        assert "there is no directory" in images

    def test_lamb_takes_no_momentum(self):
        SelaConfig(dataset="digits", optimizer="lamb")
        SelaConfig(dataset="digits", optimizer="sgdw", momentum=0.5)
        with pytest.raises(ConfigError, match="`momentum=0.5` is of no use to `optimizer=lamb`"):
            SelaConfig(dataset="digits", optimizer="lamb", momentum=0.5)


class TestOptimizer:
    def test_is_pytorchs_sgd(self, rng):
        (weight,) = weights_of(rng, use_bias=False)
        expected, velocity = read_variable(weight).astype(np.float64), np.zeros((4, 3))
        schedule = learning_rate_schedule(0.1, schedule="step", epochs=4, steps_per_epoch=5, drops=(0.5,))
        optimizer = CoupledSGD(schedule, momentum=0.9, coupled_weight_decay=0.01)
        for step in range(20):
            gradient = rng.normal(size=(4, 3)).astype(np.float32)
            optimizer.apply_gradients([(gradient, weight)])
            velocity = 0.9 * velocity + gradient + 0.01 * expected
            expected = expected - (0.1 if step < 10 else 0.01) * velocity
            np.testing.assert_allclose(read_variable(weight), expected, rtol=1e-4, atol=1e-5)

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
        assert (twin.momentum, twin.coupled_weight_decay, learning_rate_of(twin)) == pytest.approx((0.8, 0.02, 0.3))
