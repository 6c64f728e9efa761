"""The doctor: what it finds in a `fit` that goes wrong, and that it finds nothing in a healthy one."""

from __future__ import annotations

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from fitting import BATCH, STEPS, K, N, T, blobs, make_model, pairs

import sela_tf
import sela_tf.training.loop
from sela_tf.callbacks.label_statistics import ClusterSizes
from sela_tf.cli.signals import Stop
from sela_tf.training.loop import Clock, TrainingLoop, step_function
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.transport.size_bounds import least_equal_shares


@pytest.fixture
def values(rng) -> np.ndarray:
    return blobs(rng)


class Fit:
    """A `model.fit` with self-labelling and a doctor."""

    def __init__(
        self,
        values,
        *,
        model=None,
        rate=0.05,
        epochs=4,
        relabel=range(0, 1000, 6),
        assign=None,
        callbacks=(),
        sample=None,
        **doctor,
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
            pairs(values).shuffle(99, seed=0),
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[labelling, *callbacks, self.doctor, look],
        )

    @property
    def found(self) -> list[tuple[str, int]]:
        return [(finding.kind, finding.epoch) for finding in self.doctor.findings]


def from_epoch(number: int, act) -> keras.callbacks.Callback:
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: act() if epoch == number else None)


class TestDoctor:
    def test_says_nothing_of_a_healthy_training(self, values, capsys):
        fit = Fit(values, epochs=8, verbose=1, relabel=[*range(0, 36, 6), 90])
        assert fit.found == []
        assert "WARNING" not in capsys.readouterr().out
        last = fit.seen[-1]
        assert last.loss < 0.8 * np.log(K)
        # everything was looked at
        assert all(getattr(last, name) is not None for name in last._fields if name not in ("waiting_share", "cores_wanted"))

    def test_steps_too_short(self, values, capsys):
        """Once, after two epochs, and nothing besides: it explains the rest."""
        fit = Fit(values, rate=1e-9, verbose=1)
        assert fit.found == [("loss", 1)]
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
        assert line.startswith("WARNING after epoch 2: the loss 1.7")
        assert "Raise `learning_rate`" in line

    def test_steps_too_long(self, values):
        fit = Fit(values, rate=3.0, relabel=[0])
        assert fit.found == [("loss", 1)]
        assert "Lower `learning_rate`" in fit.doctor.findings[0].message

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

        def favourite(logits, initial_potentials):
            return sela_tf.Assignment(logits.log_probs().argmax(axis=1), np.zeros(K))

        fit = Fit(values, assign=favourite)
        assert fit.found[0] == ("clusters", 0)
        message = fit.doctor.findings[0].message
        worst = min((ClusterSizes.of(head, K) for head in fit.labels.labels), key=lambda head: head.effective)
        assert worst.effective < 0.8 * K
        assert f"of {K}, as uneven as" in message
        assert "`exact_balance=True`" in message

    def test_a_network_that_does_not_follow_its_balanced_labels(self, values):
        """Moving statistics that never arrive: trained on one network, the other looks at images far from where it believes them."""
        far = values + 60
        fit = Fit(far, model=make_model(momentum=0.99999), rate=0.05, epochs=6)
        assert fit.found[0] == ("clusters", 2)  # in time its potentials run away as well
        assert re.search(r"by itself puts 192 images into [123] of 6, .*lag behind", fit.doctor.findings[0].message)
        assert Fit(far, model=make_model(momentum=0.5), rate=0.05, epochs=6).found == []

    def test_a_network_that_has_only_begun_is_given_time(self, values):
        """Its argmax uses few clusters, but more from epoch to epoch, and its loss falls."""
        fit = Fit(values, rate=0.004, min_network_clusters=0.99)
        assert fit.found == []
        assert fit.seen[1].network_clusters < 0.99

    @pytest.mark.parametrize("to_come", [True, False])
    def test_a_frozen_network(self, values, to_come):
        """Frozen after epoch 2, it gives the labels of step 36 again at steps 50 and 62; that is a waste if it is to go on."""
        model = make_model()
        freeze = from_epoch(3, lambda: model.optimizer.learning_rate.assign(0.0))
        steps = [0, 36, 50, 62, *[80] * to_come]
        fit = Fit(values, model=model, epochs=6, callbacks=[freeze], relabel=steps)
        assert [seen.changed == 0 for seen in fit.seen[3:]] == [False, True, True]
        assert fit.found == [("labels", 5)] * to_come
        assert all("`num_relabellings`" in finding.message and "1 more" in finding.message for finding in fit.doctor.findings)

    def test_potentials_run_away_where_labels_are_not_balanced(self, values):
        """The transport is solved, but the labels that are trained on leave its potentials out."""

        def unbalanced(logits, initial_potentials):
            log_probs = logits.log_probs()
            solved = sinkhorn(log_probs, initial_potentials=initial_potentials)
            return sela_tf.Assignment(log_probs.argmax(axis=1), solved.potentials, solved.lam)

        fit = Fit(values, assign=unbalanced, epochs=6, rate=0.1)
        assert [kind for kind, _ in fit.found] == ["clusters", "potentials"]
        (message,) = [finding.message for finding in fit.doctor.findings if finding.kind == "potentials"]
        assert re.search(
            r"1\d\.\d nats of log p apart \(range / lam\), and grow ever farther apart \(\d epochs in a row\)", message
        )
        # the same labels at once, where the limit is lower
        early = Fit(values, assign=unbalanced, epochs=1, rate=0.1, max_potential_range=1.5)
        assert ("potentials", 0) in early.found
        assert "grow" not in early.doctor.findings[-1].message

    @pytest.mark.parametrize("slow", [True, False])
    def test_waiting_for_data(self, values, slow, monkeypatch):
        """Our own loop has a clock that knows; its time goes on by data and by being looked at alone, however busy the machine is."""
        now = [0.0]

        def look():
            now[0] += 0.01
            return now[0]

        monkeypatch.setattr(sela_tf.training.loop.time, "perf_counter", look)

        def generate():
            for i in range(4 * STEPS):
                if slow:
                    now[0] += 0.03
                index = np.arange(i * BATCH, (i + 1) * BATCH) % N
                yield values[index], index

        shapes = (tf.TensorSpec((BATCH, 8), tf.float32), tf.TensorSpec((BATCH,), tf.int64))
        labels, model, clock = sela_tf.LabelTable(T, K, N), make_model(), Clock()
        model.compile(keras.optimizers.SGD(0.05), loss=sela_tf.SelfLabelLoss(labels))
        doctor = sela_tf.CollapseDoctor(labels, waiting_share=lambda: clock.waiting_share, cores_wanted=lambda: 2.13)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # or data would be made while the network learns
        batches = tf.data.Dataset.from_generator(generate, output_signature=shapes).with_options(options)
        strategy = tf.distribute.get_strategy()
        loop = TrainingLoop(
            model=model,
            take_step=step_function(model, strategy, xla=False),
            steps_per_epoch=STEPS,
            log_every_steps=STEPS,
            clock=clock,
        )
        loop.run(
            batches, first_step=0, last_step=4 * STEPS,
            callbacks=[
                sela_tf.SelfLabelling(labels, pairs(values), relabel_steps=[0]),
                keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: clock.__init__(step=clock.step)),
                doctor,
            ],
            save=lambda step: None, stop=Stop(),
        )  # fmt: skip
        waiting = [finding for finding in doctor.findings if finding.kind == "waiting"]
        assert len(waiting) == slow
        if slow:
            assert "% of the training time is spent on data" in waiting[0].message
            assert "more CPU cores (one device takes views as fast as 2.1 make them, eight as fast as 17)" in waiting[0].message

    def test_making_views_counts_where_it_takes_the_processors_that_train(self):
        clock = Clock(waiting=1.0, stepping=9.0, steps=8)
        assert clock.waiting_share == 0.1
        clock.drawing_each = 0.5
        assert clock.waiting_share == 0.4
        clock.view_seconds, clock.views_each = 0.03, 60
        np.testing.assert_allclose(clock.cores_wanted, 0.03 * 60 * 8 / 9)

    def test_without_what_it_cannot_know_it_says_nothing_of_it(self, values):
        """No sample, no relabelling steps, no clock: silence, of dead units and of labels that stand still."""
        labels, model = sela_tf.LabelTable(T, K, N), make_model(relu_bias=-1e3)
        model.compile(keras.optimizers.SGD(0.0), loss="mse")
        doctor = sela_tf.CollapseDoctor(labels, loss="of another name")
        doctor.set_model(model)
        doctor.on_train_begin()
        for epoch in range(3):
            for head in range(T):
                labels.assign(head, labels.labels[head])
            doctor.on_epoch_end(epoch, {"loss": float(np.log(K))})
        assert doctor.findings == []
        assert doctor.symptoms.changed == 0

    def test_priors_are_what_labels_are_compared_with(self, values):
        """Sizes that a prior asked for are no dying clusters; without knowing of it, they would be."""
        prior = "zipf:1"
        assign = functools.partial(sela_tf.assign_labels, marginals=prior)
        assert Fit(values, assign=assign, epochs=2, marginals=prior).found == []
        assert Fit(values, assign=assign, epochs=2).found == [("clusters", 0)]

    def test_sizes_within_bounds_are_compared_with_the_least_equal_ones(self, values):
        assign = functools.partial(sela_tf.assign_labels, size_min=1, size_max=N)
        shares = least_equal_shares("1:", N, K)
        assert shares.tolist() == [(N - K + 1) / N] + [1 / N] * (K - 1)
        assert least_equal_shares(f":{N // 2}", N, K).round(3).tolist() == [0.5, 0.5] + [0.0] * (K - 2)
        assert Fit(values, assign=assign, epochs=2, marginals=shares).found == []

    def test_state_round_trip(self, values):
        """A twin that takes over after two epochs says what the first would have said, and nothing twice; it has what the first found."""

        def run(doctors):
            labels, model = sela_tf.LabelTable(T, K, N), make_model()
            model.compile(keras.optimizers.SGD(1e-9), loss=sela_tf.SelfLabelLoss(labels))
            state = None
            for doctor in (make(labels) for make in doctors):
                if state is not None:
                    doctor.restore(state)
                model.fit(pairs(values), epochs=1, shuffle=False, verbose=0, callbacks=[doctor])
                state = doctor.state()
            return [finding.kind for finding in doctor.findings]

        assert run([sela_tf.CollapseDoctor] * 4) == ["loss"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"max_waiting_share": -1.0}, "`max_waiting_share` must be positive"),
            ({"sample": tf.data.Dataset.range(3).repeat()}, "without end"),
            ({"sample": tf.data.Dataset.range(0)}, "without any batch"),
            ({"sample": np.zeros((3, 8))}, "Received: ndarray"),
            ({"marginals": "zip"}, "zip"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            sela_tf.CollapseDoctor(sela_tf.LabelTable(T, K, N), **arguments)

    def test_refuses_a_table_of_other_heads(self, values):
        doctor = sela_tf.CollapseDoctor(sela_tf.LabelTable(T, K + 1, N), sample=pairs(values))
        doctor.set_model(make_model())
        with pytest.raises(ValueError, match="2 heads of 6 clusters, the label table 2 of 7"):
            doctor.on_train_begin()


def test_images_that_are_the_same_to_the_network(values):
    values[: N // 4] = values[0]
    fit = Fit(values, epochs=1)
    (finding,) = [finding for finding in fit.doctor.findings if finding.kind == "images"]
    assert "many images are the same to the network: 25% of the sample" in finding.message
    assert "`background`" in finding.message
