"""The loss of the labels, against its formula."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from user_model import K, N, T

from sela_tf.models.build import with_rotation_head
from sela_tf.models.heads import MultiHead
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import SelfLabelLoss


class TestSelfLabelLoss:
    def test_is_the_mean_cross_entropy_of_the_heads(self, rng):
        table = LabelTable(T, K, N)
        logits = rng.normal(size=(10, T, K)).astype(np.float32)
        index = rng.integers(0, N, 10)
        log_probs = np.log(np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True))
        expected = -np.mean([[log_probs[b, t, table.labels[t, index[b]]] for t in range(T)] for b in range(10)])
        assert float(SelfLabelLoss(table)(index, logits)) == pytest.approx(expected, rel=1e-5)

    def test_indices_beyond_float32_are_exact(self):
        """2**24 + 1 is no float32: the neighbour's label would be taken."""
        num_examples = 2**24 + 2
        table = LabelTable(1, 2, num_examples)
        labels = np.zeros(num_examples, np.int64)
        labels[2**24 + 1] = 1
        table.assign(0, labels)
        logits = np.array([[[0.0, 10.0]]], np.float32)
        assert float(SelfLabelLoss(table)(np.array([2**24 + 1]), logits)) < 0.01
        assert float(SelfLabelLoss(table)(np.array([2**24]), logits)) > 9

    def test_beside_a_rotation_head_it_is_the_same(self, rng):
        """The first of four turned views counts: the loss is that of the first views alone, beyond float32's integers, too."""
        num_examples = 2**24 + 2
        table = LabelTable(1, 2, num_examples)
        inputs = keras.Input((3,))
        model = with_rotation_head(keras.Model(inputs, MultiHead(1, 2, name="heads")(inputs)))
        model.compile(
            "sgd",
            loss={"heads": SelfLabelLoss(table), "rotation": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        )
        index, views = np.array([2**24 + 1, 5]), rng.normal(size=(8, 3)).astype(np.float32)
        turns = np.tile(np.arange(4), 2)
        outputs = {name: values.numpy() for name, values in model(views).items()}
        weights = {"heads": 4.0 * (turns == 0), "rotation": np.ones(8)}
        loss = model.evaluate(views, {"heads": np.repeat(index, 4), "rotation": turns}, sample_weight=weights, verbose=0)
        heads = float(SelfLabelLoss(table)(index, outputs["heads"][::4]))
        logits = outputs["rotation"]
        rotation = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), turns])
        assert (loss[0] if isinstance(loss, list) else loss) == pytest.approx(heads + rotation, rel=1e-5)

    @pytest.mark.parametrize("xla", [False, True])
    @pytest.mark.parametrize("stray", [N, -1, 2**40])
    def test_an_index_outside_makes_it_nan_and_is_remembered(self, xla, stray):
        table = LabelTable(T, K, N)
        loss = tf.function(SelfLabelLoss(table), jit_compile=xla)
        logits = tf.zeros([3, T, K])
        assert float(loss(tf.constant([0, N - 1, 5]), logits)) == pytest.approx(np.log(K), rel=1e-5)
        assert table.index_outside is None
        assert np.isnan(float(loss(tf.constant([0, stray, 5], tf.int64), logits)))
        assert table.index_outside == stray

    def test_refuses_logits_of_another_shape(self):
        with pytest.raises(ValueError, match=r"\[B, 2, 4\]"):
            SelfLabelLoss(LabelTable(T, K, N))(np.zeros(3), np.zeros((3, K, T), np.float32))
