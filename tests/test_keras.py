"""Networks of a user's own: statistics of their normalisations, and several inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from user_model import K, N, T, batches, make_model, slow

import sela_tf
from sela_tf.models.inference import BatchedInference, has_empty_statistics


class TestStatistics:
    def test_empty_until_the_first_step_or_weights(self, values):
        model = make_model()
        assert has_empty_statistics(model)
        within = keras.Sequential([keras.Input((6,)), model])
        assert has_empty_statistics(within)
        model(values, training=True)
        assert not has_empty_statistics(model)
        assert not has_empty_statistics(within)
        assert not has_empty_statistics(make_model(normalise=False))

        class Block(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.norm = keras.layers.BatchNormalization()

            def call(self, inputs, training=None):
                return self.norm(inputs, training=training)

        inputs = keras.Input((6,))
        hidden = keras.Model(inputs, Block()(inputs))
        assert has_empty_statistics(hidden)
        hidden(values, training=True)
        assert not has_empty_statistics(hidden)

    def test_the_first_pass_of_a_network_that_starts_from_weights_is_in_inference_mode(self, values):
        """Its labels are those of its predictions, dropout or not."""
        inputs = keras.Input((6,))
        x = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(keras.layers.Dense(8)(inputs)))
        model = keras.Model(inputs, sela_tf.MultiHead(T, K)(x))
        model.layers[-1].kernel.assign(10 * np.asarray(model.layers[-1].kernel))
        for _ in range(30):
            model(values, training=True)
        table = sela_tf.LabelTable(T, K, N)
        model.compile("sgd", loss=sela_tf.SelfLabelLoss(table))
        labelling = sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], verbose=0)
        labelling.set_model(model)
        labelling.on_train_begin()
        labelling.on_train_batch_begin(0)
        log_probs = tf.nn.log_softmax(model.predict(values, verbose=0)).numpy()
        for head in range(T):
            expected = sela_tf.assign_labels(log_probs[:, head], lam=25.0)
            np.testing.assert_array_equal(table.labels[head], expected.labels)


@pytest.mark.parametrize("kind", [slow("list"), slow("tuple"), "dict"])
def test_several_inputs(values, tmp_path, kind):
    """Training, label pass, monitors, doctor: a model of two inputs is one of them side by side."""
    parts = values[:, :2], values[:, 2:]
    inputs = [keras.Input((2,), name="right"), keras.Input((4,), name="left")]
    structured = {"list": list, "tuple": tuple, "dict": lambda both: dict(zip(("right", "left"), both, strict=True))}[kind]
    x = keras.layers.Dense(8, name="features")(keras.layers.Concatenate()(inputs))
    keras.utils.set_random_seed(3)
    model = keras.Model(structured(inputs), sela_tf.MultiHead(T, K)(x))
    # a list becomes one tensor in tf.data
    images = tf.data.Dataset.from_tensor_slices(structured(parts) if kind == "dict" else parts)
    dataset = tf.data.Dataset.zip((images, tf.data.Dataset.range(N))).batch(16)
    table = sela_tf.LabelTable(T, K, N)
    model.compile("sgd", loss=sela_tf.SelfLabelLoss(table))
    classes = np.arange(N) % 3
    doctor = sela_tf.CollapseDoctor(table, sample=dataset)
    callbacks = [
        sela_tf.SelfLabelling(table, dataset, relabel_steps=[0]),
        sela_tf.KNNMonitor("features", train_batches=dataset, train_classes=classes, eval_batches=dataset, eval_classes=classes),
        sela_tf.ClusterMonitor(table, tmp_path, sample=dataset),
        doctor,
    ]
    history = model.fit(dataset, shuffle=False, verbose=0, callbacks=callbacks).history
    assert {"knn", "network_clusters_in_use"} <= set(history)
    features = keras.Model(model.input, x)
    extractor = BatchedInference(features)
    expected = features(structured([tf.constant(part) for part in parts])).numpy()
    np.testing.assert_allclose(extractor.collect(dataset, N), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extractor.in_order(dataset), expected, rtol=1e-5, atol=1e-6)
    extractor.fill_moving_statistics(dataset, num_batches=2)
    for head, log_probs in sela_tf.head_log_probs(model, dataset, num_examples=N):
        logits = tf.nn.log_softmax(model.predict(dataset, verbose=0)).numpy()[:, head]
        np.testing.assert_allclose(log_probs, logits, atol=1e-5)
