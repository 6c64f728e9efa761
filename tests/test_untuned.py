"""No pass over a data set waits for the thread that tunes it, whoever made the data set; TFDS's is in test_tfds.py."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from components.data_ingestion.shard_sources import TfExamples
from sela_tf.compat.autotuning import untuned
from sela_tf.data.augment import Augmentation
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches, training_batches, with_rotations
from sela_tf.data.stores import Arrays
from sela_tf.models.inference import BatchedInference, check_indices


def test_views(rng):
    pixels = rng.integers(0, 256, (23, 9, 7, 1), dtype=np.uint8)
    images = ImageSet(name="test", channels=1, store=Arrays(pixels), image_size=(9, 7))
    training = training_batches(images, size=(8, 8), augmentation=Augmentation(), batch_size=5, seed=0, first_step=0, last_step=4)
    for batches in (training, with_rotations(training), inference_batches(images, size=(8, 8), batch_size=5)):
        assert batches.options().autotune.enabled is False


@pytest.mark.parametrize("way", ["collect", "in_order", "fill_moving_statistics", "check_indices"])
def test_a_data_set_of_ones_own(way, rng, passes):
    batches = tf.data.Dataset.from_tensor_slices((rng.normal(size=(4, 3)).astype(np.float32), np.arange(4))).batch(2)
    inputs = keras.Input((3,))
    inference = BatchedInference(keras.Model(inputs, keras.layers.BatchNormalization()(inputs)))
    go = {
        "collect": lambda: inference.collect(batches, 4),
        "in_order": lambda: inference.in_order(batches),
        "fill_moving_statistics": lambda: inference.fill_moving_statistics(batches, num_batches=2),
        "check_indices": lambda: check_indices(batches, 4),
    }
    go[way]()
    assert [options.autotune.enabled for options in passes] == [False]


def test_a_shard_of_examples(tmp_path, passes):
    with tf.io.TFRecordWriter(str(tmp_path / "empty")):
        pass
    assert list(TfExamples(str(tmp_path / "empty"), "empty", "img", "", 0.0, False).records()) == []
    assert [options.autotune.enabled for options in passes] == [False]


@pytest.mark.parametrize("asked", [True, False])
def test_who_asks_for_something_gets_it(asked):
    options = tf.data.Options()
    options.autotune.enabled = asked
    assert untuned(tf.data.Dataset.range(3).with_options(options)).options().autotune.enabled is asked
