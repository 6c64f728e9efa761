"""The callbacks that watch a training: what they write, and what they find wrong in trainings that do go wrong."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SMALL, run_doors
from tensorflow.compat.v1.train import summary_iterator

import sela_tf
import sela_tf.loop
from sela_tf.evaluation.cluster_sizes import cluster_sizes
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
        assert line.startswith("WARNING after epoch 2: the loss 1.7")
        assert "Raise --learning_rate" in line

    def test_steps_too_long(self, values):
        fit = Fit(values, rate=3.0, relabel=[0])
        assert fit.found == [("loss", 1)]
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
        assert all("--num_relabellings" in finding.message and "1 more" in finding.message for finding in fit.doctor.findings)

    def test_potentials_run_away_where_labels_are_not_balanced(self, values):
        """The transport is solved, but the labels that are trained on leave its potentials out."""

        class Unbalanced:
            def __init__(self, log_probs, initial_potentials):
                solved = sinkhorn(log_probs, initial_potentials=initial_potentials)
                self.labels, self.potentials, self.converged = log_probs.argmax(axis=1), solved.potentials, True

        fit = Fit(values, assign=Unbalanced, epochs=6, rate=0.1)
        assert [kind for kind, _ in fit.found] == ["clusters", "potentials"]
        (message,) = [finding.message for finding in fit.doctor.findings if finding.kind == "potentials"]
        assert re.search(
            r"1\d\.\d nats of log p apart \(range / lam\), and grow ever farther apart \(\d epochs in a row\)", message
        )
        # the same labels at once, where the limit is lower
        early = Fit(values, assign=Unbalanced, epochs=1, rate=0.1, max_potential_range=1.5)
        assert ("potentials", 0) in early.found
        assert "grow" not in early.doctor.findings[-1].message

    @pytest.mark.parametrize("slow", [True, False])
    def test_waiting_for_data(self, values, slow, monkeypatch):
        """In our own loop, whose clock knows; on a time that goes on by data and by being looked at alone, however busy the machine is."""
        now = [0.0]

        def look():
            now[0] += 0.01
            return now[0]

        monkeypatch.setattr(sela_tf.loop.time, "perf_counter", look)

        def generate():
            for i in range(4 * STEPS):
                if slow:
                    now[0] += 0.03
                index = np.arange(i * BATCH, (i + 1) * BATCH) % N
                yield values[index], index

        shapes = (tf.TensorSpec((BATCH, 8), tf.float32), tf.TensorSpec((BATCH,), tf.int64))
        labels, model, clock = sela_tf.LabelTable(T, K, N), make_model(), Clock()
        model.compile(keras.optimizers.SGD(0.05), loss=sela_tf.SelfLabelLoss(labels))
        doctor = sela_tf.CollapseDoctor(labels, waiting_share=lambda: clock.waiting_share)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # or data would be made while the network learns
        batches = tf.data.Dataset.from_generator(generate, output_signature=shapes).with_options(options)
        train_loop(
            model, batches, strategy=tf.distribute.get_strategy(), xla=False,
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

    def test_state_round_trip(self, values):
        """A twin that takes over after two epochs says what the first would have said, and nothing twice."""

        def run(doctors):
            labels, model = sela_tf.LabelTable(T, K, N), make_model()
            model.compile(keras.optimizers.SGD(1e-9), loss=sela_tf.SelfLabelLoss(labels))
            state, found = None, []
            for doctor in (make(labels) for make in doctors):
                if state is not None:
                    doctor.restore(state)
                model.fit(pairs(values), epochs=1, shuffle=False, verbose=0, callbacks=[doctor])
                state = doctor.state()
                found += [finding.kind for finding in doctor.findings]
            return found

        assert run([sela_tf.CollapseDoctor] * 4) == ["loss"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"lam": 0.0}, "`lam` must be positive"),
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


def events(directory) -> dict[str, list[tuple[int, np.ndarray]]]:
    """By tag, the (step, value) that TensorBoard will show."""
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for file in sorted(directory.iterdir()):
        for event in summary_iterator(str(file)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


class TestClusterMonitor:
    @pytest.mark.parametrize("given", [True, False])
    def test_writes_what_the_table_and_the_network_hold(self, values, tmp_path, given):
        """Each figure against NumPy, from copies of the table that a callback of the test took."""
        labels, model = sela_tf.LabelTable(T, K, N), make_model()
        model.compile(keras.optimizers.SGD(0.05), loss=sela_tf.SelfLabelLoss(labels))
        labelling = sela_tf.SelfLabelling(labels, pairs(values, 64), relabel_steps=[0, 14, 17, 29], lam=10.0)
        writer = tf.summary.create_file_writer(str(tmp_path)) if given else tmp_path
        monitor = sela_tf.ClusterMonitor(labels, writer, lam=10.0, sample=pairs(values[:100], 30).map(lambda image, index: image))
        tables = [labels.state()]
        seen = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: (tables.append(labels.state()), logs_of.append(logs))
        )
        logs_of: list[dict] = []
        history = model.fit(pairs(values), epochs=3, shuffle=False, verbose=0, callbacks=[labelling, monitor, seen]).history
        written = events(tmp_path)
        for head in range(T):
            place = f"clusters/head{head}"
            names = {tag.removeprefix(f"{place}/") for tag in written if tag.startswith(place)}
            assert names == {
                "in_use", "information_share", "smallest", "largest", "changed", "potential_range", "network_in_use", "network_effective",
                "sizes", "num_changes", "potentials",
            }  # fmt: skip
            for epoch in range(3):
                before, table = tables[epoch], tables[epoch + 1]
                sizes = np.bincount(table["labels"][head], minlength=K)
                shares = sizes[sizes > 0] / N
                expected = {
                    "in_use": (sizes > 0).sum(), "smallest": sizes.min(), "largest": sizes.max(),
                    "information_share": -(shares * np.log(shares)).sum() / np.log(K),
                    "changed": (table["labels"][head] != before["labels"][head]).mean(),
                    "potential_range": np.ptp(table["potentials"][head]) / 10.0,
                }  # fmt: skip
                for name, value in expected.items():
                    step, got = written[f"{place}/{name}"][epoch]
                    assert step == (epoch + 1) * STEPS
                    assert got == pytest.approx(value, abs=1e-6), name
            argmax = model(values[:100]).numpy()[:, head].argmax(axis=1)
            sizes = np.bincount(argmax, minlength=K)
            shares = sizes[sizes > 0] / 100
            assert written[f"{place}/network_in_use"][-1][1] == (sizes > 0).sum()
            assert written[f"{place}/network_effective"][-1][1] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
            # histograms: left, right, count
            for name, data in (
                ("sizes", np.bincount(table["labels"][head], minlength=K)),
                ("num_changes", table["num_changes"][head]),
                ("potentials", table["potentials"][head]),
            ):
                buckets = written[f"{place}/{name}"][-1][1]
                assert buckets[:, 2].sum() == len(data)
                assert (buckets[0, 0], buckets[-1, 1]) == pytest.approx((data.min(), data.max()))
        assert history["clusters_in_use"] == [K] * 3
        assert history["labels_changed"] == pytest.approx(
            [np.mean([written[f"clusters/head{head}/changed"][epoch][1] for head in range(T)]) for epoch in range(3)]
        )
        assert {"information_share", "potential_range", "network_effective_clusters"} <= set(logs_of[0])
        if given:
            # it is its owner's to close
            with writer.as_default(99):
                tf.summary.scalar("still open", 1.0)
            writer.close()
            assert "still open" in events(tmp_path)

    def test_changes_nothing(self, values, tmp_path):
        """The same weights and labels with all monitors and without."""

        def train(watched):
            labels, model = sela_tf.LabelTable(T, K, N), make_model(momentum=0.9)
            model.compile(keras.optimizers.SGD(0.05), loss=sela_tf.SelfLabelLoss(labels))
            callbacks = [sela_tf.SelfLabelling(labels, pairs(values, 64), relabel_steps=[0, 14, 29])]
            if watched:
                sample = pairs(values, 50)
                callbacks += [
                    sela_tf.ClusterMonitor(labels, tmp_path, sample=sample),
                    sela_tf.CollapseDoctor(labels, sample=sample),
                ]
            model.fit(pairs(values), epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
            return [labels.labels, *(np.asarray(variable) for variable in model.variables)]

        for a, b in zip(train(True), train(False), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_refuses(self, values, tmp_path):
        with pytest.raises(ValueError, match="lam=-1"):
            sela_tf.ClusterMonitor(sela_tf.LabelTable(T, K, N), tmp_path, lam=-1)


class TestKNNMonitor:
    def test_refuses_what_does_not_fit_before_training(self, values):
        classes = np.arange(N) % K
        good = pairs(values), classes, pairs(values), classes
        sela_tf.KNNMonitor("features", *good)
        for k in (0, -1):
            with pytest.raises(ValueError, match=f"k={k}"):
                sela_tf.KNNMonitor("features", *good, k=k)
        with pytest.raises(
            ValueError, match=r"`train_classes` must have one entry for each image. Received: 191 entries.*to 190. Received: 191"
        ):
            sela_tf.KNNMonitor("features", pairs(values), classes[:-1], *good[2:])
        with pytest.raises(
            ValueError, match=r"`eval_classes` must have one entry for each image. Received: 193 entries.*1 missing"
        ):
            sela_tf.KNNMonitor("features", *good[:2], pairs(values), np.append(classes, 0))
        for wrong in (classes.astype(float), classes[:, np.newaxis], classes[:0], classes - 1):
            with pytest.raises(ValueError, match="`train_classes` must be integers"):
                sela_tf.KNNMonitor("features", pairs(values), wrong, *good[2:])
        with pytest.raises(ValueError, match="1 repeated|repeated"):
            sela_tf.KNNMonitor("features", pairs(values).repeat(), *good[1:])

    def test_refuses_a_layer_that_is_not_there(self, values):
        classes = np.arange(N) % K
        for layer, message in (("embedding", "features.*Received: layer='embedding'"), ("multi_head", r"\[B, D\].*\(None, 2, 6\)")):
            monitor = sela_tf.KNNMonitor(layer, pairs(values), classes, pairs(values), classes)
            model = make_model()
            model.layers[-1].name = "multi_head"
            monitor.set_model(model)
            with pytest.raises(ValueError, match=message):
                monitor.on_train_begin()


@pytest.fixture(scope="module")
def stuck(tmp_path_factory):
    """A run in which nothing is learned, and the same one continued from the end of its first and of its second epoch."""
    path = tmp_path_factory.mktemp("stuck")
    command = [*SMALL, "--learning_rate=1e-9", "--epochs=3", "--keep_checkpoints=9"]
    (whole,) = run_doors([[*command, f"--workdir={path}/whole"]])
    assert whole.returncode == 0, whole.stderr
    for kept, gone in ((21, (42, 63)), (42, (63,))):
        shutil.copytree(path / "whole", path / str(kept))
        (path / str(kept) / "results.json").unlink()
        for step in gone:
            shutil.rmtree(path / str(kept) / "checkpoints" / f"step-{step:08d}")
    doors = run_doors([[*command, f"--workdir={path}/{kept}"] for kept in (21, 42)])
    for door, kept in zip(doors, (21, 42), strict=True):
        assert f"continues at step {kept}" in door.stdout, door
    return path, whole, doors


class TestInOurTrainer:
    def test_a_warning_is_a_row_and_a_line(self, stuck):
        path, whole, _ = stuck
        rows = [json.loads(line) for line in (path / "whole" / "metrics.jsonl").read_text().splitlines()]
        warnings = [row for row in rows if row["kind"] == "warning"]
        assert [(row["step"], row["epoch"], row["diagnosis"]) for row in warnings] == [(42, 1, "loss")]
        assert f"WARNING after epoch 2: {warnings[0]['message']}" in whole.stdout.splitlines()
        epochs = [row for row in rows if row["kind"] == "epoch"]
        assert [row["clusters_in_use"] for row in epochs] == [16] * 3
        assert "clusters/head1/network_effective" in events(path / "whole" / "tensorboard")

    def test_continued_it_is_the_same_bit_for_bit(self, stuck):
        """Neither said twice, nor forgotten half-way."""
        path, _, doors = stuck
        for kept in ("21", "42"):
            for name in ("metrics.jsonl", "results.json", "labels.npz", "model.weights.h5"):
                assert (path / kept / name).read_bytes() == (path / "whole" / name).read_bytes(), (kept, name)
            one, two = (np.load(path / run / "checkpoints" / "step-00000063" / "state.npz") for run in (kept, "whole"))
            assert set(one) == set(two)
            assert {"monitors/doctor/said", "monitors/clusters/labels"} <= set(one)
            for array in one:
                np.testing.assert_array_equal(one[array], two[array], err_msg=array)
        assert ["WARNING" in door.stdout for door in doors] == [True, False]

    def test_a_healthy_run_has_none(self, finished):
        """But for waiting, which a busy machine may bring about."""
        assert '"warning"' not in (finished[0] / "metrics.jsonl").read_text()


_ON_TWO_DEVICES = """
import pathlib, sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import sela_tf
images = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
batches = tf.data.Dataset.from_tensor_slices((images, np.arange(96))).batch(16)
sample = tf.data.Dataset.from_tensor_slices(images).batch(25)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, sela_tf.MultiHead(2, 4)(keras.layers.Dense(8, activation="relu", name="features")(inputs)))
    labels = sela_tf.LabelTable(2, 4, 96, seed=0)
    model.compile(keras.optimizers.SGD(1e-9), loss=sela_tf.SelfLabelLoss(labels))
doctor = sela_tf.CollapseDoctor(labels, sample=sample)
classes = np.arange(96) % 3
callbacks = [
    sela_tf.SelfLabelling(labels, batches, relabel_steps=[0, 8]),
    sela_tf.KNNMonitor("features", batches, classes, batches, classes),
    sela_tf.ClusterMonitor(labels, sys.argv[1], sample=sample),
    doctor,
]
history = model.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=callbacks).history
argmax = model(images).numpy().argmax(axis=2)
assert history["network_clusters_in_use"][-1] == min(len(np.unique(argmax[:, head])) for head in range(2))
assert history["clusters_in_use"] == [4, 4, 4] and len(history["knn"]) == 3
assert [finding[:2] for finding in doctor.findings] == [("loss", 1)], doctor.findings
"""


@pytest.mark.slow
def test_all_monitors_work_in_fit_on_two_devices(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", _ON_TWO_DEVICES, tmp_path / "events"],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "clusters/head1/network_in_use" in events(tmp_path / "events")
