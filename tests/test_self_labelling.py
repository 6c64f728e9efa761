"""The callback in a user's own `fit`."""

from __future__ import annotations

import errno
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment
from user_model import K, N, T, batches, features_and_heads, make_model

from sela_tf.files.storage import StorageError
from sela_tf.models.build import with_rotation_head
from sela_tf.models.heads import MultiHead
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import SelfLabelLoss
from sela_tf.transport.assignment import Assignment, assign_labels


class TestSelfLabelling:
    def fit(self, model, table, callback, values, **options):
        model.compile(keras.optimizers.SGD(0.05), loss=SelfLabelLoss(table), **options.pop("compile", {}))
        return model.fit(batches(values), shuffle=False, verbose=0, callbacks=[callback], **options)

    def test_relabels_before_its_steps_in_fit(self, values, capsys):
        seen = []
        table = LabelTable(T, K, N)
        callback = SelfLabelling(
            table, batches(values), relabel_steps=[0, 7, 12], log=lambda step, heads: seen.append((step, len(heads))), verbose=1
        )
        history = self.fit(make_model(), table, callback, values, epochs=3)
        assert seen == [(0, T), (7, T), (12, T)]
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 * T
        assert lines[0].startswith("relabel step 0 head 0: ")
        assert np.isfinite(history.history["loss"]).all()
        for head in table.labels:
            assert np.abs(np.bincount(head, minlength=K) - N / K).max() <= 6  # argmax is nearly balanced

    @pytest.mark.parametrize("xla", [False, True])
    def test_the_very_next_batch_learns_from_the_new_labels(self, values, xla):
        """One network step from labels that only the relabelling gives: the loss of batch 3 is that of the new labels."""
        model = make_model(normalise=False)
        table = LabelTable(T, K, N)
        new = np.full(N, 3)
        losses = []

        def constant(logits, initial_potentials):
            return Assignment(new, np.zeros(K))

        class Watch(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                index = np.arange(batch * 16, batch * 16 + 16)
                losses.append(float(SelfLabelLoss(table)(index, self.model(values[index]))))

        model.compile(keras.optimizers.SGD(0.1), loss=SelfLabelLoss(table), jit_compile=xla)
        callback = SelfLabelling(table, batches(values), relabel_steps=[3], assign=constant)
        taken = []
        step_losses = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: taken.append(logs["loss"] * (batch + 1))
        )
        model.fit(batches(values), shuffle=False, verbose=0, callbacks=[callback, Watch(), step_losses])
        np.testing.assert_allclose(np.diff([0.0, *taken]), losses, rtol=1e-4)
        np.testing.assert_array_equal(table.labels, np.full((T, N), 3))

    def test_a_second_fit_goes_on_where_the_first_ended(self, values):
        steps = []
        table = LabelTable(T, K, N)
        callback = SelfLabelling(table, batches(values), relabel_steps=[0, 4, 8], log=lambda step, heads: steps.append(step))
        model = make_model()
        self.fit(model, table, callback, values, epochs=1)
        assert steps == [0, 4]
        model.fit(batches(values), shuffle=False, verbose=0, callbacks=[callback], epochs=1)
        assert steps == [0, 4, 8]

    def test_heads_in_turn(self, values):
        """One head a relabelling; those whose turn did not come yet keep the labels that they began with."""
        seen = []
        table = LabelTable(T, K, N)
        first = table.labels

        def log(step, heads):
            seen.append((step, [head.head for head in heads]))
            if step == 0:
                assert (table.labels[1:] == first[1:]).all()
                assert (table.labels[0] != first[0]).any()

        callback = SelfLabelling(table, batches(values), relabel_steps=[0, 3, 5, 9], heads_in_turn=True, log=log)
        self.fit(make_model(), table, callback, values, epochs=2)
        assert seen == [(step, [turn % T]) for turn, step in enumerate([0, 3, 5, 9])]
        assert table.num_relabellings.sum() == 4

    def test_steps_per_execution_skips_none(self, values):
        steps = []
        table = LabelTable(T, K, N)
        callback = SelfLabelling(table, batches(values), relabel_steps=[0, 1, 4], log=lambda step, heads: steps.append(step))
        self.fit(make_model(), table, callback, values, epochs=1, compile={"steps_per_execution": 3})
        assert steps == [0, 3]

    def test_views_may_differ_from_one_relabelling_to_the_next(self, values):
        asked = []

        def view(step):
            asked.append(step)
            return batches(values + step)

        table = LabelTable(T, K, N)
        self.fit(make_model(), table, SelfLabelling(table, view, relabel_steps=[0, 2]), values, epochs=1)
        assert asked == [0, 2]

    def test_features_may_come_from_elsewhere(self, values):
        """Features are given in place of a pass, or of several, and no data set."""
        model, given = make_model(normalise=False), []

        def mean_of_two(step, collect):
            return (collect(batches(values)) + collect(batches(values + 1))) / 2

        def assign(logits, **options):
            given.append(logits.features)
            return assign_labels(logits, **options)

        callback = SelfLabelling(LabelTable(T, K, N), None, relabel_steps=[], features=mean_of_two, assign=assign)
        callback.set_model(model)
        callback.relabel(1)
        expected = np.mean([features_and_heads(model, seen)[0] for seen in (values, values + 1)], axis=0)
        np.testing.assert_allclose(given[1], expected, rtol=1e-5)
        callback.features = lambda step, collect: expected[1:]
        with pytest.raises(ValueError, match=r"`features` must return \(96, 8\) numbers. Received: shape \(95, 8\)"):
            callback.relabel(2)
        with pytest.raises(ValueError, match="`inference_dataset` must be given"):
            SelfLabelling(LabelTable(T, K, N), None, relabel_steps=[])
        with pytest.raises(ValueError, match=r"must be a tf.data.Dataset.*Received: tuple"):
            SelfLabelling(LabelTable(T, K, N), (values, np.arange(N)), relabel_steps=[])
        for argument in ({"lam": -1.0}, {"label_memory": 0}, {"label_memory": "4"}, {"lam": float("inf")}):
            with pytest.raises(ValueError, match="must be a positive number"):
                SelfLabelling(LabelTable(T, K, N), batches(values), relabel_steps=[], **argument)

    def test_inputs_that_are_too_large_for_memory_lie_in_a_file(self, values, tmp_path, monkeypatch):
        seen, found, outcomes = [], [], []

        def noted(logits, **options):
            seen.append(logits.features)
            return assign_labels(logits, **options)

        model = make_model()
        for options in ({}, {"label_memory": 1e-6, "scratch_dir": tmp_path}, {"label_memory": 1.0, "scratch_dir": tmp_path}):
            table = LabelTable(T, K, N)
            callback = SelfLabelling(table, batches(values), relabel_steps=[], assign=noted, **options)
            callback.set_model(model)
            outcomes.append(callback.relabel(0))
            found.append(table.labels)
            assert [*tmp_path.iterdir()] == []
        for labels in found[1:]:
            np.testing.assert_array_equal(labels, found[0])
        assert [each.metrics for each in outcomes[1]] == [each.metrics for each in outcomes[0]]
        assert [isinstance(features, np.memmap) for features in seen] == [False] * T + [True] * T + [False] * T

        def no_room(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", no_room)
        callback = SelfLabelling(table, batches(values), relabel_steps=[], assign=noted, label_memory=1e-6, scratch_dir=tmp_path)
        callback.set_model(model)
        with pytest.raises(StorageError, match="make room in"):
            callback.relabel(1)
        np.testing.assert_array_equal(table.labels, found[0])

    def test_labels_of_a_failed_solve_are_not_used(self, values, capsys):
        def fails(logits, initial_potentials):
            return Assignment(np.zeros(N, int), np.zeros(K), converged=False)

        table = LabelTable(T, K, N)
        before = table.labels
        callback = SelfLabelling(table, batches(values), relabel_steps=[0], assign=fails, verbose=1)
        self.fit(make_model(), table, callback, values)
        np.testing.assert_array_equal(table.labels, before)
        assert "NOT CONVERGED" in capsys.readouterr().out

    def test_nan_in_the_logits_leaves_all_labels(self, values):
        model = make_model()
        table = LabelTable(T, K, N)
        before = table.labels
        bias = np.zeros((T, K))
        bias[1, 2] = np.nan
        model.layers[-1].bias.assign(bias)
        with pytest.raises(ValueError, match=r"`kernel` and `bias` must be finite.*diverged. Lower the learning rate"):
            self.fit(model, table, SelfLabelling(table, batches(values), relabel_steps=[0]), values)
        np.testing.assert_array_equal(table.labels, before)

    @pytest.mark.parametrize("xla", [False, True])
    def test_an_index_outside_the_table_is_named(self, values, xla):
        table = LabelTable(T, K, N)
        model = make_model()
        model.compile("sgd", loss=SelfLabelLoss(table), jit_compile=xla)
        strays = tf.data.Dataset.from_tensor_slices((values, np.arange(N) + 40)).batch(16)
        with pytest.raises(ValueError, match=f"index {N}, outside the label table of {N} images"):
            model.fit(strays, shuffle=False, verbose=0, callbacks=[SelfLabelling(table, batches(values), relabel_steps=[])])

    def test_divergence_is_named(self, values):
        table = LabelTable(T, K, N)
        model = make_model(normalise=False)
        model.compile(keras.optimizers.SGD(1e30), loss=SelfLabelLoss(table))
        with pytest.raises(ValueError, match="diverged. Lower the learning rate"):
            model.fit(
                batches(values),
                shuffle=False,
                verbose=0,
                epochs=5,
                callbacks=[SelfLabelling(table, batches(values), relabel_steps=[])],
            )

    def test_refuses_models_that_it_cannot_cut(self, values):
        table = LabelTable(T, K, N)
        inputs = keras.Input((6,))
        plain = keras.Model(inputs, keras.layers.Reshape((T, K))(keras.layers.Dense(T * K)(inputs)))
        callback = SelfLabelling(table, batches(values), relabel_steps=[0])
        with pytest.raises(ValueError, match="exactly one sela_tf.MultiHead"):
            self.fit(plain, table, callback, values)

        class Subclassed(keras.Model):
            def __init__(self):
                super().__init__()
                self.heads = MultiHead(T, K)

            def call(self, inputs):
                return self.heads(inputs)

        with pytest.raises(ValueError, match="functional"):
            self.fit(Subclassed(), table, callback, values)
        other = LabelTable(T, K + 1, N)
        with pytest.raises(ValueError, match="2 heads of 4 clusters, the label table 2 of 5"):
            self.fit(make_model(), table, SelfLabelling(other, batches(values), relabel_steps=[0]), values)
        with pytest.raises(ValueError, match="another LabelTable"):
            self.fit(make_model(), table, SelfLabelling(LabelTable(T, K, N), batches(values), relabel_steps=[0]), values)
        # one loss among several
        both = with_rotation_head(make_model())
        both.compile("sgd", loss={"heads": SelfLabelLoss(table), "rotation": "mse"})
        callback = SelfLabelling(LabelTable(T, K, N), batches(values), relabel_steps=[0])
        callback.set_model(both)
        with pytest.raises(ValueError, match="another LabelTable"):
            callback.on_train_begin()

    def test_the_training_view_uses_batch_statistics_and_changes_nothing(self, values):
        table = LabelTable(T, K, N)
        model = make_model()
        callback = SelfLabelling(table, batches(values, size=24), relabel_steps=[], batch_statistics=True)
        callback.set_model(model)
        model.compile("sgd", loss=SelfLabelLoss(table))
        callback.on_train_begin()
        before = [np.asarray(variable).copy() for variable in model.variables]
        callback.relabel(5)
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)
        logits = np.concatenate([model(values[i : i + 24], training=True) for i in range(0, N, 24)])
        log_probs = tf.nn.log_softmax(logits[:, 0]).numpy()
        rows, places = linear_sum_assignment(-np.repeat(log_probs, N // K, axis=1))
        assert (table.labels[0][rows] == places // (N // K)).mean() > 0.97
