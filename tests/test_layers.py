"""The layers of our own against Keras' and against plain formulas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from lanes import IS_KERAS_3

from sela_tf.models.batch_norm import FusedBatchNormalization
from sela_tf.models.heads import MultiHead, find_multi_head


class TestMultiHead:
    def test_is_so_many_dense_layers(self, rng):
        features = rng.normal(size=(7, 4)).astype(np.float32)
        heads = MultiHead(3, 5)
        heads.build((None, 4))
        heads.bias.assign(rng.normal(size=(3, 5)))
        for head in range(3):
            expected = features @ np.asarray(heads.kernel)[:, head] + np.asarray(heads.bias)[head]
            np.testing.assert_allclose(heads(features)[:, head], expected, atol=1e-6)
            np.testing.assert_allclose(heads.head_logits(features, head), expected, atol=1e-6)
        assert np.std(MultiHead(10, 100)(np.eye(50, dtype=np.float32))) == pytest.approx(0.01, rel=0.05)

    def test_config_round_trip(self):
        twin = MultiHead.from_config(MultiHead(3, 5, name="mine").get_config())
        assert (twin.num_heads, twin.num_clusters, twin.name) == (3, 5, "mine")

    def test_refuses_images(self):
        with pytest.raises(ValueError, match="pool or flatten"):
            MultiHead(1, 2)(np.zeros((2, 3, 3, 4), np.float32))

    def test_none_or_two_are_refused(self):
        inputs = keras.Input((4,))
        with pytest.raises(ValueError, match="Received: 0"):
            find_multi_head(keras.Model(inputs, keras.layers.Dense(2)(inputs)))
        with pytest.raises(ValueError, match="Received: 2"):
            find_multi_head(keras.Model(inputs, [MultiHead(1, 2)(inputs), MultiHead(1, 2)(inputs)]))


class TestFusedBatchNormalization:
    """Against `keras.layers.BatchNormalization` with the same constants."""

    @pytest.fixture(params=[(8, 5, 4, 3), (16, 3)], ids=["images", "vectors"])
    def inputs(self, request, rng) -> tf.Tensor:
        return tf.constant(rng.normal(2.0, 3.0, request.param).astype(np.float32))

    @staticmethod
    def pair(inputs, **options):
        layers = FusedBatchNormalization(**options), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **options)
        for layer in layers:
            layer.build(inputs.shape)
            layer.gamma.assign([0.5, 1.5, 2.5])
            layer.beta.assign([1.0, 0.0, -1.0])
            layer.moving_mean.assign([0.1, 0.2, 0.3])
            layer.moving_variance.assign([1.1, 1.2, 1.3])
        return layers

    def test_training(self, inputs):
        ours, theirs = self.pair(inputs)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            results = [layer(inputs, training=True) for layer in (ours, theirs)]
            losses = [tf.reduce_sum(tf.sin(result)) for result in results]
        np.testing.assert_allclose(*results, atol=1e-4)
        np.testing.assert_allclose(*[tape.gradient(loss, inputs) for loss in losses], atol=1e-4)
        for name in ("gamma", "beta"):
            gradients = [tape.gradient(loss, getattr(layer, name)) for loss, layer in zip(losses, (ours, theirs), strict=True)]
            np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, atol=1e-5)

    def test_moving_variance_is_unbiased(self, inputs):
        """The factor is n/(n-1), as in PyTorch; Keras' own variance is biased, but for images in Keras 2."""
        ours, theirs = self.pair(inputs)
        ours(inputs, training=True)
        theirs(inputs, training=True)
        values = np.asarray(inputs, np.float64).reshape(-1, 3)
        expected = 0.9 * np.array([1.1, 1.2, 1.3]) + 0.1 * values.var(axis=0, ddof=1)
        np.testing.assert_allclose(ours.moving_variance, expected, rtol=1e-5)
        biased = IS_KERAS_3 or inputs.shape.rank == 2
        assert (np.abs(np.asarray(theirs.moving_variance) - expected).max() > 1e-3) == biased

    def test_inference_frozen_and_masked(self, inputs):
        ours, theirs = self.pair(inputs)
        np.testing.assert_allclose(ours(inputs, training=False), theirs(inputs, training=False), atol=1e-5)
        if inputs.shape.rank == 2:
            mask = tf.constant([True] * 9 + [False] * 7)
            np.testing.assert_allclose(ours(inputs, training=True, mask=mask), theirs(inputs, training=True, mask=mask), atol=1e-4)
            np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, atol=1e-4)
        ours.trainable = theirs.trainable = False
        before = np.asarray(ours.moving_mean).copy()
        np.testing.assert_allclose(ours(inputs, training=True), theirs(inputs, training=True), atol=1e-5)
        np.testing.assert_array_equal(ours.moving_mean, before)

    def test_mixed_precision(self, inputs):
        ours, theirs = self.pair(inputs, dtype="mixed_bfloat16")
        half = tf.cast(inputs, tf.bfloat16)
        result = ours(half, training=True)
        assert result.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(result, tf.float32), tf.cast(theirs(half, training=True), tf.float32), atol=0.05)

    def test_synchronised_is_the_same_and_keeps_its_digits(self, inputs):
        """Far from zero, where the mean of squares less the square of the mean has no digits left."""
        for offset, tolerance in ((0.0, 1e-5), (1000.0, 1e-3)):
            synchronised, _ = self.pair(inputs, synchronized=True)
            fused, _ = self.pair(inputs)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(inputs)
                outputs = [layer(inputs + offset, training=True) for layer in (synchronised, fused)]
                losses = [tf.reduce_sum(tf.sin(output)) for output in outputs]
            np.testing.assert_allclose(*outputs, atol=tolerance)
            np.testing.assert_allclose(*[tape.gradient(loss, inputs) for loss in losses], atol=tolerance)
            np.testing.assert_allclose(synchronised.moving_variance, fused.moving_variance, rtol=1e-4)
            np.testing.assert_allclose(synchronised(inputs), fused(inputs), rtol=1e-4, atol=1e-5)

    def test_config_and_refusals(self):
        layer = FusedBatchNormalization.from_config(FusedBatchNormalization(momentum=0.8).get_config())
        assert (layer.momentum, layer.epsilon) == (0.8, 1e-5)
        with pytest.raises(ValueError, match="axis"):
            FusedBatchNormalization(axis=1)
        with pytest.raises(ValueError, match="input_shape"):
            FusedBatchNormalization().build((None, 3, 4))
