"""Linear classifiers ("probes") after several stages of a frozen network."""

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
from sela_tf.models.finite import DivergedError
from sela_tf.models.inference import BatchedInference

_SCORES_AT_ONCE = 2**26
"""The number of class probabilities, over stages and images, that are kept in memory while crops are summed."""
_DIVERGED = 10
"""The multiple of the loss of uniform guesses above which training counts as diverged."""
# The maps of AlexNet at 224 x 224, (side, channels), and the pooling of the reference's probes: size, which is also the stride, and
# padding on each side. The reference is github.com/yukimasano/self-label.
_PUBLISHED = {(55, 96): (6, 3), (27, 256): (4, 0), (13, 384): (3, 1), (13, 256): (2, 0)}


class ProbeSchedule(NamedTuple):
    """The training of probes by SGD, and how they are scored."""

    epochs: int
    batch_size: int
    augmentation: Augmentation
    ten_crop: bool = False
    """Score the mean over the ten crops of each held-out image instead of the clean view."""


def pooled(output: tf.Tensor, *, at_most: int, name: str) -> tf.Tensor:
    """Returns the inputs that a probe sees of a stage's output.

    A map is max-pooled and flattened. The maps of AlexNet at 224 x 224 are pooled as in the reference, to 9600 or 9216 values. Other maps
    are pooled by equal windows to the finest grid within `at_most` values.

    Args:
        output: symbolic output of the stage, [B, D] or [B, h, w, C].
        at_most: number of values to pool a map to, about.
        name: prefix of the names of the new layers. Names that Keras makes up may be in the network already.

    Returns:
        Symbolic inputs [B, D]; `output` itself if it is no map.
    """
    if len(output.shape) == 2:
        return output
    height, width, channels = output.shape[1:]
    if height == width and (height, channels) in _PUBLISHED and at_most >= 9600:
        size, padding = _PUBLISHED[height, channels]
        # The reference's max-pooling ignores the padding. Zeros have the same effect, because the maps come from a ReLU.
        output = keras.layers.ZeroPadding2D(padding, name=f"{name}_padding")(output)
        output = keras.layers.MaxPooling2D(size, size, name=f"{name}_pool")(output)
    else:
        side = max(1, math.isqrt(at_most // channels))
        sizes = (-(-height // side), -(-width // side))
        output = keras.layers.MaxPooling2D(sizes, sizes, padding="same", name=f"{name}_pool")(output)
    return keras.layers.Flatten(name=f"{name}_flat")(output)


class ProbeTask(NamedTuple):
    """The network and its stages that are probed, and the images that probes are fitted to and scored on."""

    model: keras.Model
    stages: Sequence[str]
    """Names of the layers whose outputs are probed."""
    train: ImageSet
    """Images with classes that probes are fitted to."""
    held_out: ImageSet
    """Images with classes that probes are scored on."""
    size: tuple[int, ...]
    """(height, width) that the network sees."""
    at_most: int
    """Number of values that a map is pooled to, about."""
    strategy: tf.distribute.Strategy | None = None
    """Strategy that the model was built under; None for one device."""

    def probe_inputs(self, stage: str) -> tf.Tensor:
        """Returns the inputs of the probe after `stage`, symbolic [B, D]."""
        return pooled(self.model.get_layer(stage).output, at_most=self.at_most, name=f"probed_{stage}")

    @property
    def num_classes(self) -> int:
        """The number of classes C of both sets.

        Raises:
            ValueError: a set has no classes.
        """
        return int(max(_classes(self.train).max(), _classes(self.held_out).max())) + 1


def logistic_probes(task: ProbeTask, *, max_iterations: int = 500) -> dict[str, float]:
    """Fits scikit-learn's logistic regression to each stage's output for the clean views.

    Stages are processed one after another: memory holds the inputs [N, D] of one probe and a copy of them, at most about `task.at_most`
    values an image.

    Args:
        task: network, stages and images.
        max_iterations: limit of the solver, which stops there whether it converged or not.

    Returns:
        Held-out accuracy, in [0, 1], by stage.

    Raises:
        ValueError: there are no classes.
    """
    accuracies = {}
    for stage in task.stages:
        inference = BatchedInference(cut_at(task.model, task.probe_inputs(stage)), task.strategy)
        train_inputs, inputs = (
            inference.collect(inference_batches(images, size=task.size, batch_size=EVALUATION_BATCH), len(images))
            for images in (task.train, task.held_out)
        )
        accuracies[stage] = linear_probe_accuracy(
            train_inputs, _classes(task.train), inputs, _classes(task.held_out), max_iterations=max_iterations
        )
    return accuracies


def sgd_probes(
    task: ProbeTask, *, optimizer: keras.optimizers.Optimizer, schedule: ProbeSchedule, seed: int = 0
) -> dict[str, float]:
    """Trains probes after all stages together by SGD. A probe is batch normalisation without scale or shift, and a linear layer.

    The network is frozen in inference mode and runs once a batch for all probes. Its attribute `trainable` becomes False; nothing else of
    it changes.

    Args:
        task: network, stages and images.
        optimizer: the optimizer, with the learning rates of the schedule.
        schedule: epochs, batches, views, and how probes are scored.
        seed: seed of the views and of the probes' weights.

    Returns:
        Held-out accuracy, in [0, 1], by stage.

    Raises:
        ValueError: training diverged (DivergedError), or there are no classes.
    """
    num_classes = task.num_classes
    strategy = task.strategy or tf.distribute.get_strategy()
    task.model.trainable = False
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        probes, logits = _probe_model(task, num_classes)
        optimizer.build(probes.trainable_variables)
        probes.compile(
            optimizer,
            loss={name: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for name in logits},
            jit_compile=False,
        )
    loss = _train(probes, task, schedule, seed=seed)
    uniform = len(task.stages) * math.log(num_classes)
    if not loss <= _DIVERGED * uniform:
        raise DivergedError(
            f"The probes diverged: their loss ended at {loss:.3g}, and probes that know nothing have {uniform:.3g}. "
            "Lower `learning_rate`"
        )
    return _accuracies(probes.input, logits, task, num_classes, ten_crop=schedule.ten_crop)


def _probe_model(task: ProbeTask, num_classes: int) -> tuple[keras.Model, dict[str, tf.Tensor]]:
    """Returns the frozen network with a probe after each stage, and the symbolic logits [B, C] by the number of the stage."""
    # A layer of the network has the stage's name already, so probes are named by number.
    inputs = keras.Input(task.model.input.shape[1:])
    frozen = keras.Model(task.model.input, {str(i): task.probe_inputs(stage) for i, stage in enumerate(task.stages)})
    outputs = _InInferenceMode(frozen)(inputs)
    # Keras may sort the names, so the order is that of the stages here.
    logits = {number: _probe(outputs[number], num_classes, number) for number in map(str, range(len(task.stages)))}
    return keras.Model(inputs, logits), logits


def _train(probes: keras.Model, task: ProbeTask, schedule: ProbeSchedule, *, seed: int) -> float:
    """Trains the compiled `probes`, and returns the mean loss of the last epoch, summed over stages."""
    classes = tf.constant(_classes(task.train))

    def with_classes(images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, Mapping[str, tf.Tensor]]:
        return images, dict.fromkeys(probes.output, tf.gather(classes, indices))

    steps = len(task.train) // schedule.batch_size
    batches = training_batches(
        task.train,
        size=task.size,
        augmentation=schedule.augmentation,
        batch_size=schedule.batch_size,
        seed=seed,
        first_step=0,
        last_step=schedule.epochs * steps,
    )
    history = probes.fit(batches.map(with_classes), epochs=schedule.epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    return history.history["loss"][-1]


def _accuracies(
    inputs: tf.Tensor, logits: Mapping[str, tf.Tensor], task: ProbeTask, num_classes: int, *, ten_crop: bool
) -> dict[str, float]:
    """Returns the held-out accuracy of each stage's trained probe, from the mean probabilities over the views of an image."""
    stages, held_out, size = task.stages, task.held_out, task.size
    strategy = task.strategy or tf.distribute.get_strategy()
    side_by_side = keras.layers.Concatenate() if len(stages) > 1 else keras.layers.Identity()
    shares = [keras.layers.Softmax()(value) for value in logits.values()]
    scores = BatchedInference(keras.Model(inputs, side_by_side(shares if len(stages) > 1 else shares[0])), strategy)
    crops: Sequence[int | None] = range(NUM_CROPS) if ten_crop else (None,)
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
    """A layer that runs a network in inference mode, also during training.

    Calling a nested model with `training=False` is not enough: Keras replaces that argument by its own during `fit`.
    """

    def __init__(self, network: keras.Model):
        super().__init__(trainable=False)
        self.network = network

    def call(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.network(inputs, training=False)


def _probe(inputs: tf.Tensor, num_classes: int, number: str) -> tf.Tensor:
    """Returns the symbolic logits [B, C] of a new probe on symbolic inputs [B, D]."""
    normalised = keras.layers.BatchNormalization(
        center=False, scale=False, momentum=0.9, epsilon=1e-5, dtype="float32", name=f"probe{number}_bn"
    )(inputs)
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    return keras.layers.Dense(num_classes, kernel_initializer=initializer, dtype="float32", name=f"probe{number}")(normalised)


def _classes(images: ImageSet) -> np.ndarray:
    """Returns the class labels, integers [N].

    Raises:
        ValueError: there are none.
    """
    if images.classes is None:
        raise ValueError(f"{images.full_name} has no class labels, which probes need")
    return images.classes
