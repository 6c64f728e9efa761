"""A user's model and its labels in files, copies and backups, and fits that were interrupted."""

from __future__ import annotations

import contextlib
import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from user_model import K, N, T, batches, compiled, make_model, same_state, slow, slow_but_on_lanes, table_of

import sela_tf


class TestFiles:
    def test_a_checkpoint_holds_the_table(self, rng, tmp_path):
        table, twin = table_of(rng), sela_tf.LabelTable(T, K, N)
        path = tf.train.Checkpoint(labels=table).write(str(tmp_path / "checkpoint"))
        tf.train.Checkpoint(labels=twin).read(path).assert_consumed()
        assert same_state(table, twin)
        with pytest.raises(ValueError, match=f"shape \\(2, {N + 1}\\)"):
            tf.train.Checkpoint(labels=sela_tf.LabelTable(T, K, N + 1)).read(path)

    @pytest.mark.parametrize("kind", ["weights", "one of two losses"])
    def test_weights_of_a_compiled_model_hold_the_table(self, rng, tmp_path, kind):
        table, twin = table_of(rng), sela_tf.LabelTable(T, K, N)
        models = [compiled(table), compiled(twin)]
        if kind != "weights":
            for i, labels in enumerate((table, twin)):
                inputs = models[i].input
                models[i] = keras.Model(inputs, {"heads": models[i].output, "other": keras.layers.Dense(2)(inputs)})
                models[i].compile("sgd", loss={"heads": sela_tf.SelfLabelLoss(labels), "other": "mse"})
        models[0].save_weights(tmp_path / "model.weights.h5")
        models[1].load_weights(tmp_path / "model.weights.h5")
        assert same_state(table, twin)

    def test_weights_without_labels_or_of_other_labels_load(self, rng, tmp_path):
        table = table_of(rng)
        model = compiled(table)
        model.save_weights(tmp_path / "with.weights.h5")
        plain = make_model()
        plain.load_weights(tmp_path / "with.weights.h5")
        plain.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
        plain.optimizer.build(plain.trainable_variables)
        plain.save_weights(tmp_path / "without.weights.h5")
        twin = table_of(np.random.default_rng(9))
        before = twin.labels
        compiled(twin).load_weights(tmp_path / "without.weights.h5")
        np.testing.assert_array_equal(twin.labels, before)
        other = sela_tf.LabelTable(T, K, N + 1)
        before, into = other.labels, compiled(other)
        with pytest.warns(UserWarning, match=r"another table's.*shape \(2, 97\). Received: \(2, 96\)"):
            into.load_weights(tmp_path / "with.weights.h5")
        np.testing.assert_array_equal(other.labels, before)
        np.testing.assert_array_equal(into.layers[-1].kernel, model.layers[-1].kernel)


class TestCopies:
    @pytest.mark.parametrize("way", ["load_model", "deepcopy", slow("pickle"), slow("clone_model")])
    def test_are_unbound_and_can_be_trained(self, values, tmp_path, way):
        model = compiled(sela_tf.LabelTable(T, K, N))
        model.fit(batches(values), shuffle=False, verbose=0)
        if way == "load_model":
            model.save(tmp_path / "model.keras")
            copied = keras.models.load_model(tmp_path / "model.keras")
        elif way == "clone_model":
            copied = keras.models.clone_model(model)
            copied.set_weights(model.get_weights())
            copied.compile("sgd", loss=sela_tf.SelfLabelLoss.from_config(model.loss.get_config()))
        else:
            copied = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))  # noqa: S301 - its own
        np.testing.assert_array_equal(copied.predict(values, verbose=0), model.predict(values, verbose=0))
        assert copied.loss.labels is None
        with pytest.raises(ValueError, match="bind a LabelTable: loss.labels = table"):
            copied.evaluate(batches(values), verbose=0)
        table = sela_tf.LabelTable(T, K, N)
        copied.fit(
            batches(values), shuffle=False, verbose=0, callbacks=[sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0])]
        )
        assert copied.loss.labels is table


class Power(keras.callbacks.Callback):
    """Fails in the middle of an epoch."""

    def __init__(self, fails_in_epoch: int | None):
        super().__init__()
        self.fails_in_epoch, self.epoch = fails_in_epoch, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.fails_in_epoch and batch == 2:
            raise RuntimeError("power cut")


class TestBackupAndRestore:
    @pytest.mark.parametrize("backup_first", [slow_but_on_lanes(True), False])
    def test_labels_come_back_and_training_goes_on(self, values, tmp_path, backup_first):
        """The loss of every later epoch, all labels and potentials, and the weights, as without the stop."""

        def fit(directory, fails_in_epoch=None):
            table = sela_tf.LabelTable(T, K, N, seed=2)
            steps: list[int] = []
            labelling = sela_tf.SelfLabelling(
                table, batches(values), relabel_steps=[0, 9, 20], log=lambda step, heads: steps.append(step)
            )
            backup = keras.callbacks.BackupAndRestore(directory)
            both = [backup, labelling] if backup_first else [labelling, backup]
            model = compiled(table)
            cut = contextlib.nullcontext() if fails_in_epoch is None else pytest.raises(RuntimeError, match="power cut")
            with cut:
                model.fit(batches(values), epochs=4, shuffle=False, verbose=0, callbacks=[*both, Power(fails_in_epoch)])
            return table, steps, model

        whole, _, model = fit(tmp_path / "whole")
        _, steps, _ = fit(tmp_path / "cut", fails_in_epoch=2)
        assert steps == [0, 9]
        table, steps, continued = fit(tmp_path / "cut")
        assert steps == [20]
        losses = model.history.history["loss"]
        assert continued.history.history["loss"] == pytest.approx(losses[2:], rel=1e-5)
        assert same_state(table, whole)
        for a, b in zip(continued.weights, model.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_a_table_that_missed_its_relabellings_is_relabelled_at_once(self, values):
        model = compiled(None)
        model.optimizer.iterations.assign(40)
        table, steps = sela_tf.LabelTable(T, K, N), []
        labelling = sela_tf.SelfLabelling(
            table, batches(values), relabel_steps=[0, 9, 43], log=lambda step, heads: steps.append(step)
        )
        model.fit(batches(values), shuffle=False, verbose=0, callbacks=[labelling])
        assert steps == [40, 43]
