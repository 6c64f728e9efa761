"""SimCLR (arXiv 2002.05709) on the network, the views and the batches of a run, for a given processor time."""

from __future__ import annotations

import dataclasses
import math
import time

import keras
import tensorflow as tf

from sela_tf.compat.autotuning import untuned
from sela_tf.data import augment
from sela_tf.data.augment import Augmentation
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import random_views
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data, augmentation
from sela_tf.training.initial_state import description_of, first_network
from sela_tf.training.optimizer import CoupledSGD

_TEMPERATURE = 0.2
_HIDDEN, _PROJECTION = 256, 128
_LEARNING_RATE, _WEIGHT_DECAY = 0.1, 1e-4
_NEVER = -1e9
"""The similarity of a view to itself."""


def train_simclr(config: SelaConfig, data: Data, *, cpu_seconds: float) -> tuple[keras.Model, int, float]:
    """Trains SimCLR; the learning rate falls by a cosine over the processor time.

    Args:
        config: The settings of the run, for network, batch, views and seed.
        data: The images.
        cpu_seconds: The processor time of the training.

    Returns:
        The network, with the projection in place of the heads; the steps; the processor time.
    """
    config = dataclasses.replace(config, hidden_units=_HIDDEN, num_heads=1, num_clusters=_PROJECTION)
    model = first_network(config, description_of(config, data), tf.distribute.get_strategy())
    optimizer = CoupledSGD(_LEARNING_RATE, momentum=0.9, coupled_weight_decay=_WEIGHT_DECAY)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(views: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = nt_xent(model(views, training=True)[:, 0], temperature=_TEMPERATURE)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    views = simclr_views(augmentation(config))
    batches = iter(pairs_of_views(data.train, data.size, views, batch_size=config.batch_size, seed=config.seed))
    start, num_steps, spent = time.process_time(), 0, 0.0
    while spent < cpu_seconds:
        optimizer.learning_rate.assign(_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * spent / cpu_seconds)))
        loss = step(next(batches))
        num_steps += 1
        if num_steps % 200 == 0:
            print(f"SimCLR: step {num_steps}, loss {float(loss):.3f}, {spent:.0f} s", flush=True)
        spent = time.process_time() - start
    return model, num_steps, spent


def nt_xent(projected: tf.Tensor, *, temperature: float) -> tf.Tensor:
    """Returns the mean cross-entropy of finding an image's other view among all views, by cosine similarity over a temperature.

    Args:
        projected: Projections float32 `[2 B, D]`; those of an image are B rows apart.
        temperature: The temperature.
    """
    count = tf.shape(projected)[0]
    normalised = tf.math.l2_normalize(projected, axis=1)
    similarity = tf.matmul(normalised, normalised, transpose_b=True) / temperature
    similarity = tf.linalg.set_diag(similarity, tf.fill([count], _NEVER))
    others = tf.roll(tf.range(count), count // 2, axis=0)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(others, similarity))


def simclr_views(of_run: Augmentation) -> Augmentation:
    """Returns the views of a run, with the jitter of colours that SimCLR needs at the least."""
    least = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale_probability": 0.2}
    return of_run._replace(**{name: max(value, getattr(of_run, name)) for name, value in least.items()})


def pairs_of_views(
    images: ImageSet, size: tuple[int, ...], augmentation: Augmentation, *, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Returns batches without end: two views of each of `batch_size` images, float32 `[2 B, height, width, C]`."""
    view = random_views(images, size=size, augmentation=augmentation)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        indices = tf.range(len(images), dtype=tf.int64)
        order = tf.random.experimental.stateless_shuffle(indices, seed=[tf.constant(seed, tf.int64), number])
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)

    def pair(number: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        draws = tf.random.stateless_uniform([2 * batch_size, augment.NUM_DRAWS], seed=[tf.constant(seed, tf.int64), number])
        return view(tf.ensure_shape(tf.tile(indices, [2]), [2 * batch_size]), draws)[0]

    batches = tf.data.Dataset.range(2**40).flat_map(epoch).enumerate().map(pair, num_parallel_calls=2)
    return untuned(batches.prefetch(2))
