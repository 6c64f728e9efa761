"""Every setting reaches what it is about, and the state of an experiment goes there and back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from user_model import slow_but_on_lanes

from sela_tf.compat.decoupled import why_unavailable
from sela_tf.compat.releases import learning_rate_of, optimizer_variables
from sela_tf.models.inference import read_variable, steps_taken
from sela_tf.self_labelling.schedule import relabel_steps
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training import run as trainer
from sela_tf.training.experiment import Experiment
from sela_tf.training.loop import TrainingLoop, step_function
from sela_tf.transport.assignment import plan_memory

N, K, T = 240, 6, 2


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("vectors") / "vectors.npz"
    centres = 2 * rng.normal(size=(9, 5))
    draw = functools.partial(rng.normal, size=(N, 5))
    np.savez(path, features=centres[np.arange(N) % 9] + draw(), eval_features=draw())
    return f"features:{path}"


@pytest.fixture
def made(vectors):
    """A function from settings to the experiment that they ask for."""

    def make(**changes: Any) -> Experiment:
        settings = {
            "dataset": vectors, "backbone": "mlp", "width": 8, "hidden_units": 4, "num_heads": T, "num_clusters": K, "batch_size": 40,
            "epochs": 4, "num_relabellings": 5, "feature_noise": 0.3, "report": False,
        }  # fmt: skip
        experiment = Experiment(SelaConfig(**{**settings, **changes}), tf.distribute.get_strategy())
        experiment.labelling.set_model(experiment.model)
        return experiment

    return make


def sharpen(experiment: Experiment) -> Experiment:
    """Heads whose transport takes many iterations."""
    experiment.model.get_layer("heads").kernel.assign(3 * np.random.default_rng(1).normal(size=(4, T, K)))
    return experiment


class TestTransport:
    def test_lam(self, made):
        experiment = made(lam=3.0)
        experiment.labelling.relabel(1)
        np.testing.assert_array_equal(experiment.labels.lam, [3.0, 3.0])

    def test_tolerance_and_iterations(self, made):
        for changes, holds in (
            ({"transport_tolerance": 1e-6}, lambda head: head["converged"] and head["marginal_error"] <= 1e-6),
            ({"transport_tolerance": 0.5}, lambda head: head["converged"] and head["marginal_error"] > 1e-3),
            ({"transport_max_iterations": 1}, lambda head: not head["converged"] and head["num_iterations"] == 1),
        ):
            outcome = sharpen(made(**changes)).labelling.relabel(1)
            assert all(holds(head.metrics) for head in outcome), changes

    def test_exact_balance(self, made):
        for exact in (True, False):
            outcome = sharpen(made(exact_balance=exact)).labelling.relabel(1)
            assert [head.metrics["rounding_gap"] is not None for head in outcome] == [exact, exact]
            # labels of the soft transport are nearly balanced, and no more than that
            assert all((head.assignment.sizes == N / K).all() for head in outcome) == exact

    def test_marginals(self, made):
        sizes = sharpen(made(marginals="zipf")).labelling.relabel(1)[0].assignment.sizes
        assert sizes.max() > 3 * sizes.min()

    def test_cluster_sizes(self, made):
        experiment = sharpen(made(cluster_sizes=f"{N // K // 2}:{3 * N // (2 * K)}"))
        sizes = experiment.labelling.relabel(1)[0].assignment.sizes
        assert (sizes.min(), sizes.max()) == (N // K // 2, 3 * N // (2 * K)), "both bounds are reached"
        assert (np.bincount(experiment.labels.labels[0], minlength=K) == sizes).all()
        with pytest.raises(ConfigError, match=f"`cluster_sizes={N}:`: .* at least {N * K} and at most {N * K} rows in all"):
            made(cluster_sizes=f"{N}:")

    def test_memory(self, made, monkeypatch):
        from sela_tf.transport import assignment

        plans = []
        monkeypatch.setattr(
            assignment, "plan_memory", lambda *args, **options: plans.append(plan_memory(*args, **options)) or plans[-1]
        )
        made(label_memory=1e-9).labelling.relabel(1)
        made().labelling.relabel(1)
        assert [plan.form for plan in plans] == ["computed"] * T + ["float32"] * T

    def test_known_labels(self, made, tmp_path):
        (tmp_path / "known.csv").write_text("index,cluster\n" + "".join(f"{row},{row % 3}\n" for row in range(30)))
        experiment = sharpen(made(known_labels=str(tmp_path / "known.csv")))
        experiment.labelling.relabel(1)
        np.testing.assert_array_equal(experiment.labels.labels[:, :30], np.tile(np.arange(30) % 3, (T, 1)))


class TestSchedule:
    def test_spacing(self, made):
        for spacing in ("linear", "quadratic"):
            expected = relabel_steps(5, epochs=4, steps_per_epoch=6, spacing=spacing)
            assert made(relabel_spacing=spacing).labelling.relabel_steps == expected

    def test_heads_in_turn(self, made):
        for heads, relabelled in (("in_turn", [1, 0]), ("all", [1, 1])):
            experiment = made(relabel_heads=heads)
            experiment.labelling.on_train_begin()
            experiment.labelling.on_train_batch_begin(0)
            assert experiment.labels.num_relabellings.tolist() == relabelled

    def test_learning_rate(self, made):
        for schedule, expected in (("cosine", 0.5 * (1 + math.cos(math.pi / 4))), ("step", 1.0)):
            experiment = made(learning_rate=0.05, lr_schedule=schedule, lr_drops=(0.5,))
            experiment.model.optimizer.iterations.assign(6)
            assert learning_rate_of(experiment.model.optimizer) == pytest.approx(0.05 * expected)


class TestViews:
    def test_label_view(self, made):
        def features_of(experiment: Experiment, number: int) -> np.ndarray:
            pairs = [
                (index, view)
                for views, indices in experiment.label_views(number)
                for index, view in zip(indices, views, strict=True)
            ]
            return np.stack([view for _, view in sorted(pairs, key=lambda pair: int(pair[0]))])

        clean, training = made(), made(label_view="training")
        np.testing.assert_array_equal(features_of(clean, 0), clean.data.train.images)
        assert np.abs(features_of(training, 0) - features_of(training, 1)).mean() > 0.1
        assert not clean.labelling.batch_statistics
        assert training.labelling.batch_statistics


class TestStep:
    def graph_of(self, experiment: Experiment) -> Any:
        return experiment.take_step.get_concrete_function(next(iter(experiment.views(0, 1)))).graph.as_graph_def()

    def test_xla(self, made):
        for xla in (True, False):
            compiled = ["_XlaMustCompile" in node.attr for node in self.graph_of(made(xla=xla)).node]
            assert any(compiled) == xla

    def test_mixed_precision(self, made):
        for name, dtype in (("none", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")):
            experiment = made(mixed_precision=name)
            assert experiment.model.get_layer("hidden_dense").compute_dtype == dtype
            assert experiment.model.get_layer("heads").compute_dtype == "float32"
            assert isinstance(experiment.model.optimizer, keras.optimizers.LossScaleOptimizer) == (name == "float16")

    def test_the_trainer_passes_them_on(self, made, tmp_path, monkeypatch):
        """The loop is given what the settings say: a run is stopped where it would begin."""

        class BegunError(Exception):
            pass

        given: dict[str, Any] = {}

        def begin(loop: TrainingLoop, batches: tf.data.Dataset, **options: Any) -> None:
            given.update(vars(loop), **options, batches=batches)
            raise BegunError

        monkeypatch.setattr(TrainingLoop, "run", begin)
        config = dataclasses.replace(
            made().config, xla=True, log_every_steps=3, lr_schedule="cosine", relabel_heads="in_turn", lam=4.0
        )
        with pytest.raises(BegunError):
            trainer.run(config, tmp_path / "run")
        assert (given["log_every_steps"], given["steps_per_epoch"], given["last_step"]) == (3, 6, 24)
        graph = given["take_step"].get_concrete_function(next(iter(given["batches"]))).graph.as_graph_def()
        assert any("_XlaMustCompile" in node.attr for node in graph.node)
        labelling = given["callbacks"][0]
        assert labelling.heads_in_turn
        assert labelling.assign.keywords["lam"] == 4.0
        assert given["batches"].cardinality() in (24, tf.data.UNKNOWN_CARDINALITY)


def take_steps(experiment: Experiment, batches: Iterable) -> None:
    step = step_function(experiment.model, experiment.strategy, xla=False)
    for batch in batches:
        step(batch)


def assert_same_state(one: Experiment, two: Experiment) -> None:
    states = one.state(), two.state()
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("sgdw", "none"),
        slow_but_on_lanes("lamb", "none"),
        slow_but_on_lanes("sgd", "float16"),
        slow_but_on_lanes("sgdw", "float16"),
        slow_but_on_lanes("lamb", "float16"),
    ],
)
def test_a_restored_optimizer_takes_the_same_steps(made, name, precision):
    """Moments, the count of steps and the loss scale are part of the state."""
    if name != "sgd" and (reason := why_unavailable(name)):
        pytest.skip(reason)
    settings = {"optimizer": name, "mixed_precision": precision}
    one, two = made(**settings), made(**settings, seed=3)
    if precision == "float16":
        numbers = [each for each in optimizer_variables(one.model.optimizer) if each.shape == ()]
        (loss_scale,) = [each for each in numbers if read_variable(each) == 2**15]
        loss_scale.assign(2**10)
    batches = list(one.views(0, 5))
    take_steps(one, batches[:3])
    two.restore(one.state())
    assert_same_state(one, two)
    for experiment in (one, two):
        take_steps(experiment, batches[3:])
    assert_same_state(one, two)
    assert steps_taken(two.model) == 5


def test_state_goes_there_and_back(made):
    one, two = made(), made(seed=3)
    take_steps(one, one.views(0, 3))
    sharpen(one).labelling.relabel(3)
    two.restore(one.state())
    assert_same_state(one, two)
    assert int(two.model.optimizer.iterations) == 3
    old = {name: value for name, value in one.state().items() if name != "table/lam"}
    two.restore(old)
    np.testing.assert_array_equal(two.labels.lam, [25.0, 25.0])
