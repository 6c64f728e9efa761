"""The callbacks that watch a training: what they write down, in `fit`, in a run, and on two devices."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fitting import STEPS, K, N, T, blobs, make_model, pairs
from fixtures import ROOT, SMALL, run_doors
from tensorflow.compat.v1.train import summary_iterator

import sela_tf
import sela_tf.training.loop


@pytest.fixture
def values(rng) -> np.ndarray:
    return blobs(rng)


def events(directory) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The pairs (step, value) that TensorBoard will show, by tag."""
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for file in sorted(directory.iterdir()):
        for event in summary_iterator(str(file)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


class TestClusterMonitor:
    @pytest.mark.parametrize("given", [True, False])
    def test_writes_what_the_table_and_the_network_hold(self, values, tmp_path, given):
        """Every figure against NumPy, from copies of the table that a callback of the test took."""
        labels, model = sela_tf.LabelTable(T, K, N), make_model()
        model.compile(keras.optimizers.SGD(0.05), loss=sela_tf.SelfLabelLoss(labels))
        labelling = sela_tf.SelfLabelling(labels, pairs(values, 64), relabel_steps=[0, 14, 17, 29], lam=10.0)
        writer = tf.summary.create_file_writer(str(tmp_path)) if given else tmp_path
        monitor = sela_tf.ClusterMonitor(labels, writer, sample=pairs(values[:100], 30).map(lambda image, index: image))
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


class TestKNNMonitor:
    def given(self, values, **other) -> dict:
        classes = np.arange(N) % K
        pair = {"train_batches": pairs(values), "train_classes": classes, "eval_batches": pairs(values), "eval_classes": classes}
        return {**pair, **other}

    def test_refuses_what_does_not_fit_before_training(self, values):
        classes = np.arange(N) % K
        sela_tf.KNNMonitor("features", **self.given(values))
        with pytest.raises(TypeError, match="positional"):
            sela_tf.KNNMonitor("features", *self.given(values).values())
        for k in (0, -1):
            with pytest.raises(ValueError, match=f"k={k}"):
                sela_tf.KNNMonitor("features", **self.given(values, k=k))
        with pytest.raises(
            ValueError, match=r"`train_classes` must have one entry for each image. Received: 191 entries.*to 190. Received: 191"
        ):
            sela_tf.KNNMonitor("features", **self.given(values, train_classes=classes[:-1]))
        with pytest.raises(
            ValueError, match=r"`eval_classes` must have one entry for each image. Received: 193 entries.*1 missing"
        ):
            sela_tf.KNNMonitor("features", **self.given(values, eval_classes=np.append(classes, 0)))
        for wrong in (classes.astype(float), classes[:, np.newaxis], classes[:0], classes - 1):
            with pytest.raises(ValueError, match="`train_classes` must be integers"):
                sela_tf.KNNMonitor("features", **self.given(values, train_classes=wrong))
        with pytest.raises(ValueError, match="1 repeated|repeated"):
            sela_tf.KNNMonitor("features", **self.given(values, train_batches=pairs(values).repeat()))

    def test_refuses_a_layer_that_is_not_there(self, values):
        model = make_model()
        heads = model.layers[-1].name
        for layer, message in (("embedding", "features.*Received: layer='embedding'"), (heads, r"\[B, D\].*\(None, 2, 6\)")):
            monitor = sela_tf.KNNMonitor(layer, **self.given(values))
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


@pytest.mark.slow
@pytest.mark.xdist_group("monitors")
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
    sela_tf.KNNMonitor("features", train_batches=batches, train_classes=classes, eval_batches=batches, eval_classes=classes),
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
