"""Linear classifiers after several stages of a frozen network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.augment import NUM_CROPS, Augmentation
from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches, training_batches
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.models.build import cut_at
from sela_tf.models.inference import BatchedInference

_SCORES_AT_ONCE = 2**26
"""Shares of classes, over stages and images, that are added up over crops together."""
_DIVERGED = 10
# AlexNet's maps at 224 x 224: the pooling of the reference's probes, as size (and stride) and padding on each side.
_PUBLISHED = {(55, 96): (6, 3), (27, 256): (4, 0), (13, 384): (3, 1), (13, 256): (2, 0)}


class Schedule(NamedTuple):
    """Of probes that are trained by SGD."""

    epochs: int
    batch_size: int
    augmentation: Augmentation
    ten_crop: bool = False
    """Score the mean over the ten crops of each held-out image instead of the clean view."""


def pooled(output: tf.Tensor, *, at_most: int, name: str) -> tf.Tensor:
    """What a probe sees of a stage: [B, D] as it is, a map [B, h, w, C] max-pooled to about `at_most` values, flattened: [B, D].

    A map as AlexNet's at 224 x 224 is pooled as in the reference, which leaves 9600 or 9216 values; other maps to the finest grid of
    equal windows that keeps within `at_most`. Layers are called `name`_…: names that Keras makes may be in the network already.
    """
    if len(output.shape) == 2:
        return output
    height, width, channels = output.shape[1:]
    if height == width and (height, channels) in _PUBLISHED and at_most >= 9600:
        size, padding = _PUBLISHED[height, channels]
        # max-pooling ignores what lies outside; after a ReLU zeros do the same
        output = keras.layers.ZeroPadding2D(padding, name=f"{name}_padding")(output)
        output = keras.layers.MaxPooling2D(size, size, name=f"{name}_pool")(output)
    else:
        side = max(1, math.isqrt(at_most // channels))
        sizes = (-(-height // side), -(-width // side))
        output = keras.layers.MaxPooling2D(sizes, sizes, padding="same", name=f"{name}_pool")(output)
    return keras.layers.Flatten(name=f"{name}_flat")(output)


class Probed(NamedTuple):
    """What probes are fitted to."""

    model: keras.Model
    stages: Sequence[str]
    """Names of layers."""
    train: ImageSet
    """With classes; likewise `held_out`, which probes are scored on."""
    held_out: ImageSet
    size: tuple[int, ...]
    """(height, width) that the network sees."""
    at_most: int
    """Values that a probe sees, about."""
    strategy: tf.distribute.Strategy | None = None
    """That the model was built under."""

    def probe_inputs(self, stage: str) -> tf.Tensor:
        """Returns the inputs of the probe of a stage, symbolic [B, D]."""
        return pooled(self.model.get_layer(stage).output, at_most=self.at_most, name=f"probed_{stage}")


def fitted_probes(probed: Probed, *, max_iterations: int = 500) -> dict[str, float]:
    """Held-out accuracy of scikit-learn's logistic regression on each stage of the clean views, one stage at a time.

    It holds the inputs [N, D] of one stage's probe and a copy of them, at most about `probed.at_most` values an image.

    Args:
        probed: network, stages and images.
        max_iterations: of the solver, which stops there, converged or not.
    """
    accuracies = {}
    for stage in probed.stages:
        inference = BatchedInference(cut_at(probed.model, probed.probe_inputs(stage)), probed.strategy)
        train_inputs, inputs = (
            inference.collect(inference_batches(images, size=probed.size, batch_size=EVALUATION_BATCH), len(images))
            for images in (probed.train, probed.held_out)
        )
        accuracies[stage] = linear_probe_accuracy(
            train_inputs, _classes(probed.train), inputs, _classes(probed.held_out), max_iterations=max_iterations
        )
    return accuracies


def trained_probes(probed: Probed, *, optimizer: keras.optimizers.Optimizer, schedule: Schedule, seed: int = 0) -> dict[str, float]:
    """Held-out accuracy of probes (batch normalisation without scale or shift, linear) after all stages, trained together by SGD.

    The network is frozen, in inference mode, and runs once a batch for all of them; it is not changed but for `trainable`, which
    becomes False.

    Args:
        probed: network, stages and images.
        optimizer: with the schedule's learning rates.
        schedule: passes, batches, views, and how it is scored.
        seed: of the views and of the probes' weights.

    Raises:
        ValueError: training diverged, or there are no classes.
    """
    model, stages, train, held_out, size = probed[:5]
    strategy = probed.strategy or tf.distribute.get_strategy()
    num_classes = int(max(_classes(train).max(), _classes(held_out).max())) + 1
    model.trainable = False
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        # probes are named by their number: a layer has the stage's name already
        inputs = keras.Input(model.input.shape[1:])
        frozen = keras.Model(model.input, {str(i): probed.probe_inputs(stage) for i, stage in enumerate(stages)})
        outputs = _InInferenceMode(frozen)(inputs)
        # in the stages' order: Keras may sort the names
        logits = {number: _probe(outputs[number], num_classes, number) for number in map(str, range(len(stages)))}
        probes = keras.Model(inputs, logits)
        optimizer.build(probes.trainable_variables)
        probes.compile(
            optimizer,
            loss={name: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for name in logits},
            jit_compile=False,
        )
    classes = tf.constant(_classes(train))

    def with_classes(images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, Mapping[str, tf.Tensor]]:
        return images, dict.fromkeys(logits, tf.gather(classes, indices))

    steps = len(train) // schedule.batch_size
    batches = training_batches(
        train,
        size=size,
        augmentation=schedule.augmentation,
        batch_size=schedule.batch_size,
        seed=seed,
        first_step=0,
        last_step=schedule.epochs * steps,
    )
    history = probes.fit(batches.map(with_classes), epochs=schedule.epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    last, knows_nothing = history.history["loss"][-1], len(stages) * math.log(num_classes)
    if not last <= _DIVERGED * knows_nothing:
        raise ValueError(
            f"The probes diverged: their loss ended at {last:.3g}, and probes that know nothing have {knows_nothing:.3g}. Lower --learning_rate"
        )
    side_by_side = keras.layers.Concatenate() if len(stages) > 1 else keras.layers.Identity()
    shares = [keras.layers.Softmax()(value) for value in logits.values()]
    scores = BatchedInference(keras.Model(inputs, side_by_side(shares if len(stages) > 1 else shares[0])), strategy)
    crops: Sequence[int | None] = range(NUM_CROPS) if schedule.ten_crop else (None,)
    rows = max(1, _SCORES_AT_ONCE // (len(stages) * num_classes))
    correct = np.zeros(len(stages), np.int64)
    for start in range(0, len(held_out), rows):
        part = held_out if rows >= len(held_out) else held_out.take(np.arange(start, min(start + rows, len(held_out))))
        total = np.zeros((len(part), len(stages), num_classes), np.float32)
        for crop in crops:
            views = inference_batches(part, size=size, batch_size=EVALUATION_BATCH, crop=crop)
            total += scores.collect(views, len(part)).reshape(total.shape)
        correct += (total.argmax(axis=2) == _classes(part)[:, np.newaxis]).sum(axis=0)
    return dict(zip(stages, (correct / len(held_out)).tolist(), strict=True))


class _InInferenceMode(keras.layers.Layer):
    """A network as it is served, also in training: Keras replaces the `training=False` that a nested model was called with."""

    def __init__(self, network: keras.Model):
        super().__init__(trainable=False)
        self.network = network

    def call(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.network(inputs, training=False)


def _probe(inputs: tf.Tensor, num_classes: int, number: str) -> tf.Tensor:
    normalised = keras.layers.BatchNormalization(
        center=False, scale=False, momentum=0.9, epsilon=1e-5, dtype="float32", name=f"probe{number}_bn"
    )(inputs)
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    return keras.layers.Dense(num_classes, kernel_initializer=initializer, dtype="float32", name=f"probe{number}")(normalised)


def _classes(images: ImageSet) -> np.ndarray:
    if images.classes is None:
        raise ValueError(f"{images.full_name} has no class labels, which probes need")
    return images.classes
