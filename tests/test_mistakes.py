"""The usual mistakes in a user's `fit`: each is named, once, and good ways are left in peace."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from user_model import K, N, T, batches, by_argmax, compiled, slow

import sela_tf


class TestMistakes:
    def fit(self, values, index, *, compile=None, labelling=None, **options) -> sela_tf.LabelTable:
        table = sela_tf.LabelTable(T, K, len(values))
        model = compiled(table, **(compile or {}))
        callback = sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], assign=by_argmax, **(labelling or {}))
        dataset = index if isinstance(index, tf.data.Dataset) else batches(values, index)
        model.fit(dataset, shuffle=False, verbose=0, callbacks=[callback], **options)
        return table

    @pytest.mark.parametrize(("xla", "num_classes"), [(False, 10), slow(True, 2)])
    def test_class_labels_for_indices(self, rng, xla, num_classes):
        values = rng.normal(size=(320, 6)).astype(np.float32)
        with pytest.raises(ValueError, match=f"about {num_classes} different indices for 320 images.*not its class label"):
            self.fit(values, rng.integers(0, num_classes, 320), compile={"jit_compile": xla, "run_eagerly": False})

    @pytest.mark.parametrize(
        ("num_examples", "drawn", "few"),
        [
            (1797, lambda rng: rng.permutation(1797), False),
            (50_000, lambda rng: rng.permutation(50_000)[:640], False),  # steps_per_epoch=10
            (50_000, lambda rng: np.arange(640), False),
            (1_281_167, lambda rng: np.arange(0, 1_281_167, 64), False),  # one of 64 workers
            (50_000, lambda rng: rng.integers(0, 50_000, 50_000), False),
            (4, lambda rng: np.arange(400) % 4, False),
            (16, lambda rng: rng.integers(0, 16, 16), False),
            (1000, lambda rng: np.repeat(rng.permutation(1000)[:100], 8), False),  # eight views of each
            # nine of ten draws from a hundredth of the images
            (10_000, lambda rng: np.where(rng.random(10_000) < 0.9, rng.integers(0, 100, 10_000), rng.integers(0, 10_000, 10_000)), False),
            (5000, lambda rng: np.tile(rng.permutation(5000)[:64], 100), False),  # one batch, to see whether it can be learned
            (1797, lambda rng: rng.integers(0, 10, 1797), True),
            (50_000, lambda rng: rng.integers(0, 100, 640), False),  # too few draws to know
            (50_000, lambda rng: rng.integers(0, 100, 50_000), True),
            (5994, lambda rng: rng.integers(0, 200, 5994), True),  # CUB-200
            (1_281_167, lambda rng: rng.integers(1, 1001, 1_281_167), True),  # ImageNet's, from 1
        ],
    )  # fmt: skip
    def test_few_indices_are_told_from_many(self, rng, num_examples, drawn, few):
        table = sela_tf.LabelTable(1, 2, num_examples)
        index = drawn(rng)
        for part in np.array_split(index, max(len(index) // 10_000, 1)):
            table.lookup(tf.constant(part, tf.int64))
        assert table.num_drawn == len(index)
        assert (table.few_indices is not None) == few
        if few:
            assert table.few_indices == pytest.approx(len(np.unique(index)), rel=0.2)
        table.forget_lookups()
        assert table.num_drawn == 0

    def test_lam_beside_assign(self, values):
        table = sela_tf.LabelTable(T, K, N)
        with pytest.raises(ValueError, match="give one of them. Received: lam=10"):
            sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], lam=10, assign=sela_tf.assign_labels)

    def test_validation_on_other_images(self, values):
        seen = []
        log = {"log": lambda step, heads: seen.append(step)}
        with pytest.raises(ValueError, match="`validation_data` of `fit` have no labels.*validation_shows_training_images=True"):
            self.fit(values, None, validation_data=batches(values[:20]), labelling=log)
        assert seen == []
        allowed = {"validation_shows_training_images": True}
        self.fit(values, None, validation_data=batches(values[:20]), labelling=allowed)
        with pytest.raises(ValueError, match=f"`validation_data` yielded the example index {N}, outside"):
            self.fit(values, None, validation_data=batches(values[:20], np.arange(20) + N - 19), labelling=allowed)

    def test_a_callback_list_that_validates_is_refused_too(self, values):
        """Another loop than `fit` may validate so."""
        table = sela_tf.LabelTable(T, K, N)
        labelling = sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0])
        hooks = keras.callbacks.CallbackList([labelling], model=compiled(table))
        hooks.on_test_begin()
        hooks.on_train_begin()
        with pytest.raises(ValueError, match="`validation_data`"):
            hooks.on_test_begin()

    def test_an_evaluation_in_between_is_not_blamed_on_training(self, values):
        """Somebody's own callback meets an index outside; training, which diverges later, is told of its learning rate."""
        table = sela_tf.LabelTable(T, K, N)
        model = compiled(table)
        others = batches(values[:20], np.arange(20) + N)

        def look(epoch, logs):
            self_evaluated.append(model.evaluate(others, verbose=0))
            model.optimizer.learning_rate = 1e30

        self_evaluated: list[float] = []
        callbacks = [
            keras.callbacks.LambdaCallback(on_epoch_end=look),
            sela_tf.SelfLabelling(table, batches(values), relabel_steps=[]),
        ]
        with pytest.raises(ValueError, match="diverged. Lower the learning rate"):
            model.fit(batches(values), epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        assert np.isnan(self_evaluated[0])

    def test_told_once(self, values):
        with pytest.warns(UserWarning, match="`class_weight` of `fit`") as told, pytest.raises(tf.errors.InvalidArgumentError):
            self.fit(values, None, class_weight={0: 1.0, 1: 2.0})
        assert len([one for one in told if one.category is UserWarning]) == 1
        metric = keras.metrics.MeanMetricWrapper(lambda index, logits: tf.reduce_mean(logits, axis=[1, 2]), name="mean")
        with pytest.warns(UserWarning, match="`metrics` of `compile`") as told:
            self.fit(values, None, compile={"metrics": [metric]})
        assert len([one for one in told if one.category is UserWarning]) == 1


class TestSilence:
    @pytest.mark.parametrize(("told", "own", "lines"), [(0, None, False), (2, None, True), slow(0, 1, True), slow(2, 0, False)])
    def test_as_fit_or_the_callback_was_told(self, values, capsys, told, own, lines):
        table = sela_tf.LabelTable(T, K, N)
        callbacks = [
            sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], assign=by_argmax, verbose=own),
            sela_tf.CollapseDoctor(table, verbose=own),
        ]
        model = compiled(table)
        model.optimizer.learning_rate = 1e-9
        model.fit(batches(values), epochs=2, shuffle=False, verbose=told, callbacks=callbacks)
        out, err = capsys.readouterr()
        assert ("relabel step 0" in out) == ("WARNING after epoch 2" in out) == lines
        assert [finding.kind for finding in callbacks[1].findings] == ["loss"]
        if not told and not lines:
            assert out == err == ""
