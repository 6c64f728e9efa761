"""Tests of benchmarks/other_views.py: other views to label and to learn by."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT, SMALL

import sela_tf
from benchmarks.other_views import Bank, PairsExperiment, averaged, pairs, with_features
from sela_tf.settings.training import SelaConfig


def network() -> keras.Model:
    inputs = keras.Input((3,))
    features = keras.layers.Dense(5, activation="relu", name="features")(inputs)
    return keras.Model(inputs, sela_tf.MultiHead(1, 2)(features))


def features_of(model: keras.Model, vectors: np.ndarray) -> np.ndarray:
    return keras.Model(model.input, model.get_layer("features").output)(vectors).numpy()


def test_the_bank_holds_what_training_saw_last_and_spares_the_pass(rng):
    vectors, indices = rng.normal(size=(10, 3)).astype("float32"), np.arange(10)
    model, table = network(), sela_tf.LabelTable(1, 2, 10)
    passes = []

    def batches(step: int) -> tf.data.Dataset:
        def look(vector: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.numpy_function(lambda x: passes.append(step) or x, [vector], tf.float32), index

        return tf.data.Dataset.from_tensor_slices((vectors, indices)).batch(10).map(look)

    model.compile(keras.optimizers.SGD(0.0), loss=sela_tf.SelfLabelLoss(table))
    bank = Bank(10, 5, batch_size=4, steps_per_epoch=2, views_of=batches)
    watched = bank.watched(model)
    labelling = sela_tf.SelfLabelling(table, None, relabel_steps=[0, 1, 2, 3], features=bank.features)
    # two epochs of two steps, of other views each, which leave out two images each; what is behind the batch does not count
    seen = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
    views = [(step + 2) * vectors[rows] for step, rows in enumerate(seen)]
    behind = np.full((1, 3), 9.0, "float32")
    steps = [(np.concatenate([view, behind]), np.array([*rows, 6])) for view, rows in zip(views, seen, strict=True)]
    dataset = with_features(tf.data.Dataset.from_tensor_slices(tuple(map(np.stack, zip(*steps, strict=True)))))
    watched.fit(dataset, epochs=2, steps_per_epoch=2, shuffle=False, verbose=0, callbacks=[labelling])
    assert passes == [0, 1]
    expected = features_of(model, vectors)
    for view, rows in zip(views, seen, strict=True):
        expected[rows] = features_of(model, view)
    labelling.relabel(4)
    assert passes == [0, 1]
    np.testing.assert_allclose(bank.values.numpy(), expected, rtol=1e-5)
    continued = sela_tf.SelfLabelling(
        table, None, relabel_steps=[], features=Bank(10, 5, batch_size=4, steps_per_epoch=2, views_of=batches).features
    )
    continued.set_model(watched)
    continued.on_train_begin()
    continued.relabel(4)
    assert passes == [0, 1, 4]


def test_averaged_labels_are_of_four_views(rng):
    vectors, indices = rng.normal(size=(8, 3)).astype("float32"), np.arange(8)
    model, table = network(), sela_tf.LabelTable(1, 2, 8)
    made = []

    def views_of(number: int) -> tf.data.Dataset:
        made.append((number, vectors + len(made)))
        return tf.data.Dataset.from_tensor_slices((made[-1][1], indices)).batch(8)

    given = []

    def assign(logits: sela_tf.LinearLogits, **options) -> sela_tf.Assignment:
        given.append(logits.features)
        return sela_tf.assign_labels(logits, **options)

    labelling = sela_tf.SelfLabelling(table, None, relabel_steps=[], features=averaged(views_of), assign=assign)
    model.compile("sgd", loss=sela_tf.SelfLabelLoss(table))
    labelling.set_model(model)
    labelling.on_train_begin()
    labelling.relabel(7)
    assert len({number for number, _ in made}) == 4
    np.testing.assert_allclose(given[0], np.mean([features_of(model, view) for _, view in made], axis=0), rtol=1e-5)


def test_pairs_are_two_views_of_each_image_and_every_image_once_an_epoch():
    config = SelaConfig(
        dataset="digits", backbone="resnet8", width=1, num_clusters=16, crop_scale=0.5, batch_size=64, rotation=False
    )
    experiment = PairsExperiment(config, tf.distribute.get_strategy())
    num_images = experiment.labels.num_examples
    steps = num_images // 32
    batches = list(experiment.views(0, 2 * steps).as_numpy_iterator())
    for views, indices in batches:
        np.testing.assert_array_equal(indices[:32], indices[32:])
        assert np.abs(views[:32] - views[32:]).mean() > 1
    epochs = [np.concatenate([indices[:32] for _, indices in epoch]) for epoch in (batches[:steps], batches[steps:])]
    assert all(len(np.unique(epoch)) == 32 * steps for epoch in epochs)
    assert (epochs[0] != epochs[1]).mean() > 0.9
    draw = pairs(num_images, 64, seed=config.seed)
    np.testing.assert_array_equal(draw(steps + 1), batches[steps + 1][1])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["averaged", "bank", "pairs"])
def test_other_views_make_a_whole_run(way, tmp_path):
    flags = [*SMALL, "--rotation", "--rotation_share=0.25", f"--workdir={tmp_path}/run"]
    subprocess.run([sys.executable, "-m", "benchmarks.other_views", way, *flags], check=True, cwd=ROOT, capture_output=True)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained"]["knn"] > 0.6
    assert results["config"]["label_view"] == ("training" if way == "averaged" else "clean")
