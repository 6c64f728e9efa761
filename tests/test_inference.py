"""Passes over a data set in inference mode."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from sela_tf.models.batch_norm import FusedBatchNormalization
from sela_tf.models.inference import BatchedInference


class TestBatchedInference:
    @staticmethod
    def model() -> keras.Model:
        inputs = keras.Input((3,))
        x = keras.layers.Dropout(0.5)(FusedBatchNormalization()(inputs))
        return keras.Model(inputs, x)

    def test_rows_follow_the_index(self, rng):
        values = rng.normal(size=(50, 3)).astype(np.float32)
        model = self.model()
        order = rng.permutation(50)
        batches = tf.data.Dataset.from_tensor_slices((values[order], order)).batch(7)
        np.testing.assert_allclose(BatchedInference(model).collect(batches, 50), model(values), atol=1e-6)

    def test_some_rows_come_in_the_order_of_the_batches(self, rng):
        values, model, made = rng.normal(size=(50, 3)).astype(np.float32), self.model(), []

        def new_array(shape):
            made.append(shape)
            return np.empty(shape, np.float32)

        order = rng.permutation(50)[:23]
        some = tf.data.Dataset.from_tensor_slices((values[order], order))
        # In the first the number of batches tells how many rows there are at most; the last are of another size than it promises.
        unknown, ragged = some.batch(7).filter(lambda x, i: True), some.take(1).batch(1).concatenate(some.skip(1).batch(22))
        for batches, shapes in ((some.batch(7), [(32, 3)]), (unknown, [(50, 3)]), (ragged, [(4, 3), (50, 3)])):
            made.clear()
            found, indices = BatchedInference(model).collect_some(batches, 50, new_array=new_array)
            np.testing.assert_array_equal(indices, order)
            np.testing.assert_allclose(found, model(values[order]), atol=1e-6)
            assert made == shapes

    @pytest.mark.parametrize("norm", [FusedBatchNormalization(), keras.layers.BatchNormalization(momentum=0.999)])
    def test_settling_moves_the_statistics_alone(self, rng, norm):
        values = rng.normal(5.0, 2.0, size=(64, 3)).astype(np.float32)
        inputs = keras.Input((3,))
        momentum = norm.momentum
        model = keras.Model(inputs, norm(keras.layers.Dense(3)(inputs)))
        kernel = np.asarray(model.layers[1].kernel).copy()
        batches = tf.data.Dataset.from_tensor_slices((values, np.arange(64))).batch(32)
        BatchedInference(model).fill_moving_statistics(batches)
        np.testing.assert_array_equal(model.layers[1].kernel, kernel)
        assert norm.momentum == momentum
        outputs = model(values, training=False).numpy()
        np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=0.1)
        np.testing.assert_allclose(outputs.std(axis=0), 1, atol=0.1)

    def test_batch_statistics_are_used_and_nothing_is_changed(self, rng):
        values = rng.normal(5.0, 2.0, size=(64, 3)).astype(np.float32)
        model = self.model()
        before = [np.asarray(variable).copy() for variable in model.variables]
        batches = tf.data.Dataset.from_tensor_slices((values, np.arange(64))).batch(64)
        features = BatchedInference(model).collect(batches, 64, batch_statistics=True)
        normalised = (values - values.mean(axis=0)) / values.std(axis=0)
        kept = features != 0  # dropout
        np.testing.assert_allclose(features[kept], 2 * normalised[kept], atol=1e-3)
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value, err_msg=variable.name)

    @pytest.mark.parametrize(
        ("indices", "message"),
        [
            ([0, 1, 2, 2], "1 missing .*3.*1 repeated .*2"),
            ([0, 1, 2], "1 missing"),
            ([0, 1, 2, 9], "9"),
            ([0, 1, -1, 2], "-1"),
            ([0.0, 1.0, 2.0, 3.0], "float"),
        ],
    )
    def test_refuses_indices_that_are_not_each_once(self, indices, message):
        values = np.zeros((len(indices), 3), np.float32)
        with pytest.raises(ValueError, match=message):
            BatchedInference(self.model()).collect(tf.data.Dataset.from_tensor_slices((values, indices)).batch(2), 4)

    def test_refuses_what_does_not_end_or_is_no_pair(self):
        pairs = tf.data.Dataset.from_tensor_slices((np.zeros((4, 3), np.float32), np.arange(4)))
        extractor = BatchedInference(self.model())
        with pytest.raises(ValueError, match="repeated"):
            extractor.collect(pairs.batch(2).repeat(), 4)
        with pytest.raises(ValueError, match="must yield pairs"):
            extractor.collect(pairs.map(lambda x, i: x).batch(2), 4)
