"""The callbacks that watch a training: what they write, and what they find wrong in trainings that do go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SMALL, run_doors
from tensorflow.compat.v1.train import summary_iterator

import sela_tf
from sela_tf.evaluation.cluster_sizes import cluster_sizes
from sela_tf.evaluation.diagnosis import KINDS
from sela_tf.loop import Clock, Stop
from sela_tf.loop import train as train_loop
from sela_tf.transport.sinkhorn import sinkhorn

N, K, T, BATCH = 192, 6, 2, 16
STEPS = N // BATCH


@pytest.fixture
def values(rng) -> np.ndarray:
    """Six overlapping blobs: something to learn, and something to change one's mind about."""
    return (3 * rng.normal(size=(K, 8))[np.arange(N) % K] + rng.normal(size=(N, 8))).astype(np.float32)


def pairs(values: np.ndarray, size: int = BATCH) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((values, np.arange(len(values)))).batch(size)


def make_model(*, relu_bias: float = 0.0, momentum: float | None = None) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8,))
    x = inputs
    if momentum is not None:
        x = keras.layers.BatchNormalization(momentum=momentum)(x)
    x = keras.layers.Dense(16, activation="relu", bias_initializer=keras.initializers.Constant(relu_bias), name="features")(x)
    return keras.Model(inputs, sela_tf.MultiHead(T, K)(x))


class Fit:
    """A `model.fit` with self-labelling and a doctor."""

    def __init__(
        self, values, *, model=None, rate=0.05, epochs=4, relabel=range(0, 1000, 6), assign=None, callbacks=(), sample=None, **doctor
    ):
        self.model = make_model() if model is None else model
        self.labels = sela_tf.LabelTable(T, K, N)
        self.doctor = sela_tf.CollapseDoctor(
            self.labels, sample=pairs(values if sample is None else sample, 50), relabel_steps=relabel, **doctor
        )
        self.model.compile(keras.optimizers.SGD(rate), loss=sela_tf.SelfLabelLoss(self.labels))
        labelling = sela_tf.SelfLabelling(self.labels, pairs(values, 64), relabel_steps=relabel, assign=assign)
        self.seen = []
        look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self.seen.append(self.doctor.symptoms))
        self.history = self.model.fit(
            pairs(values).shuffle(99, seed=0), epochs=epochs, shuffle=False, verbose=0, callbacks=[labelling, *callbacks, self.doctor, look]
        )

    @property
    def found(self) -> list[tuple[str, int]]:
        return [(finding.kind, finding.epoch) for finding in self.doctor.findings]


def from_epoch(number: int, act) -> keras.callbacks.Callback:
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: act() if epoch == number else None)


class TestDoctor:
    def test_says_nothing_of_a_healthy_training(self, values, capsys):
        fit = Fit(values, epochs=8)
        assert fit.found == []
        assert "WARNING" not in capsys.readouterr().out
        last = fit.seen[-1]
        assert last.loss < 0.8 * np.log(K)
        # everything was looked at
        assert all(getattr(last, name) is not None for name in last._fields if name != "waiting_share")

    def test_steps_too_short(self, values, capsys):
        """Once, after two epochs, and nothing besides: it explains the rest."""
        fit = Fit(values, rate=1e-9)
        assert fit.found == [("loss", 1)]
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
        assert line.startswith("WARNING after epoch 2: the loss 1.79")
        assert "Raise --learning_rate" in line

    def test_steps_too_long(self, values):
        fit = Fit(values, model=make_model(momentum=0.9), rate=100.0)
        assert ("loss", 1) in fit.found
        assert "Lower --learning_rate" in fit.doctor.findings[0].message

    def test_dead_units_until_they_come_to_life(self, values):
        """Said once; said again when it comes back."""
        model = make_model(relu_bias=-1e3)
        bias = model.get_layer("features").bias
        revive = from_epoch(2, lambda: bias.assign(np.zeros(16)))
        kill = from_epoch(4, lambda: bias.assign(np.full(16, -1e3)))
        fit = Fit(values, model=model, epochs=6, callbacks=[revive, kill])
        assert fit.found == [("features", 0), ("features", 4)]
        assert "16 of 16 are always 0" in fit.doctor.findings[0].message
        assert "between 192 images" in fit.doctor.findings[0].message

    def test_labels_without_a_transport_die(self, values):
        """Every image keeps the cluster that the network likes best: what the method is there to prevent."""

        class Favourite:
            def __init__(self, log_probs, initial_potentials):
                self.labels, self.potentials, self.converged = log_probs.argmax(axis=1), np.zeros(K), True

        fit = Fit(values, assign=Favourite)
        assert fit.found[0] == ("clusters", 0)
        message = fit.doctor.findings[0].message
        worst = min((cluster_sizes(head, K) for head in fit.labels.labels), key=lambda head: head.effective)
        assert worst.effective < 0.8 * K
        assert f"of {K}, as uneven as" in message
        assert "--exact_balance" in message

    def test_a_network_that_does_not_follow_its_balanced_labels(self, values):
        """Moving statistics that never arrive: trained on one network, the other looks at images far from where it believes them."""
        far = values + 12
        fit = Fit(far, model=make_model(momentum=0.99999), rate=0.02, min_network_clusters=0.25)
        assert fit.found == [("clusters", 1)], fit.found
        assert "by itself puts 192 images into 1 of 6" in fit.doctor.findings[0].message
        assert Fit(far, model=make_model(momentum=0.5), rate=0.02, min_network_clusters=0.25).found == []

    def test_a_frozen_network(self, values):
        """The labels stand still from epoch 3 on, which is said as long as there are relabellings to come."""
        model = make_model()
        freeze = from_epoch(3, lambda: model.optimizer.learning_rate.assign(0.0))
        fit = Fit(values, model=model, epochs=6, callbacks=[freeze])
        assert fit.found == [("labels", 5)] or fit.found == [("labels", 4)]
        assert "--num_relabellings" in fit.doctor.findings[0].message
        model = make_model()
        freeze = from_epoch(3, lambda: model.optimizer.learning_rate.assign(0.0))
        assert Fit(values, model=model, epochs=6, callbacks=[freeze], relabel=range(0, 3 * STEPS + 1, 6)).found == []

    def test_potentials_run_away_where_labels_are_not_balanced(self, values):
        """The transport is solved, but the labels that are trained on leave its potentials out."""

        class Unbalanced:
            def __init__(self, log_probs, initial_potentials):
                solved = sinkhorn(log_probs, initial_potentials=initial_potentials)
                self.labels, self.potentials, self.converged = log_probs.argmax(axis=1), solved.potentials, True

        fit = Fit(values, assign=Unbalanced, epochs=40, rate=0.3)
        print([round(float(seen.potential_ranges.max()), 2) for seen in fit.seen], [s.growing for s in fit.seen], fit.found)
        assert "potentials" in [kind for kind, _ in fit.found]

    @pytest.mark.parametrize("slow", [True, False])
    def test_waiting_for_data(self, values, slow):
        """In our own loop, whose clock knows."""

        def generate():
            for i in range(4 * STEPS):
                if slow:
                    time.sleep(0.03)
                index = np.arange(i * BATCH, (i + 1) * BATCH) % N
                yield values[index], index

        shapes = (tf.TensorSpec((BATCH, 8), tf.float32), tf.TensorSpec((BATCH,), tf.int64))
        labels, model, clock = sela_tf.LabelTable(T, K, N), make_model(), Clock()
        model.compile(keras.optimizers.SGD(0.05), loss=sela_tf.SelfLabelLoss(labels))
        doctor = sela_tf.CollapseDoctor(labels, waiting_share=lambda: clock.waiting_share)
        train_loop(
            model, tf.data.Dataset.from_generator(generate, output_signature=shapes), strategy=tf.distribute.get_strategy(), xla=False,
            callbacks=[
                sela_tf.SelfLabelling(labels, pairs(values), relabel_steps=[0]),
                keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: clock.__init__(step=clock.step)),
                doctor,
            ],
            clock=clock, first_step=0, last_step=4 * STEPS, steps_per_epoch=STEPS, log_every_steps=STEPS, save=lambda step: None,
            stop=Stop(),
        )  # fmt: skip
        waiting = [finding for finding in doctor.findings if finding.kind == "waiting"]
        assert len(waiting) == slow
        if slow:
            assert "% of the training time is spent waiting for data" in waiting[0].message
