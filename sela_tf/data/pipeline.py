"""The input pipeline: batches of (views, example indices) from an image set, a pure function of data, seed, stream and pass.

Batches have no labels. The loss looks the label of an example up by its index (`sela_tf.self_labelling`), so that a relabelling takes
effect from the very next batch, although batches are prefetched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from sela_tf.compat.autotuning import untuned
from sela_tf.data import augment
from sela_tf.data.augment import Augmentation
from sela_tf.data.decoding import decode_image
from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays, DecodedFiles

_TRAINING, _LABELLING, EVALUATION_STREAM = 1, 2, 3
"""Streams of random numbers; a seed, a stream and a pass give the numbers of each example."""

View = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""A function of example indices `[B]` and random numbers `[B, NUM_DRAWS]` that returns views and the indices."""


class Replicas(NamedTuple):
    """The replicas of this process, among those of all processes that train together."""

    first: int = 0
    """The number of the first one, from 0."""
    here: int = 1
    """The number of those that this process has."""
    total: int = 1
    """The number of those that all processes have."""


def training_batches(
    images: ImageSet,
    *,
    size: tuple[int, ...],
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    replicas: Replicas | None = None,
) -> tf.data.Dataset:
    """Returns training views for the steps from `first_step` up to, not including, `last_step`.

    Each epoch has its own permutation of the images, and each image its own random view in each epoch. The last, partial batch of an
    epoch is left out; other epochs have its images in other batches.

    Args:
        images: The N training images, or vectors.
        size: (height, width) of the views; () for vectors.
        augmentation: The strengths of the views.
        batch_size: The number of images per batch B.
        seed: The seed of permutations and views.
        first_step: The first step, from 0.
        last_step: The step after the last one.
        replicas: The replicas that get equal parts of each batch, one element each, in order; None for whole batches.

    Yields:
        Views, float32 `[B, height, width, C]` in [0, 255] (or vectors `[B, D]`), and example indices, int64 `[B]`. Where `replicas` are given
        `B` is their part of a batch.
    """
    own = replicas or Replicas()
    part_size = batch_size // own.total
    steps_per_epoch = len(images) // batch_size
    first_epoch = first_step // steps_per_epoch
    last_epoch = -(-last_step // steps_per_epoch)

    def epoch_indices(epoch: tf.Tensor) -> tf.data.Dataset:
        order, draws = _keyed(seed, _TRAINING, epoch, len(images))

        def batch(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            step, replica = number // own.here, own.first + number % own.here
            start = step * batch_size + replica * part_size
            indices = tf.ensure_shape(order[start : start + part_size], [part_size])
            return indices, tf.gather(draws, indices)

        return tf.data.Dataset.range(steps_per_epoch * own.here).map(batch)

    steps = tf.data.Dataset.range(first_epoch, last_epoch).flat_map(epoch_indices)
    steps = steps.skip((first_step - first_epoch * steps_per_epoch) * own.here).take((last_step - first_step) * own.here)
    return _with_views(images, steps, _Crops(size, augmentation=augmentation))


def inference_batches(
    images: ImageSet,
    *,
    size: tuple[int, ...],
    batch_size: int,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    stream: int = _LABELLING,
    pass_number: int = 0,
    crop: int | None = None,
    in_order: bool = False,
    share: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Returns views of every image once, in a random order of the pass: clean views, training views, or one of the ten crops.

    Sizes of batches differ by one at most, so that no batch is too small for the batch statistics that a label pass may use.

    Args:
        images: The N images, or vectors.
        size: (height, width) of the views; () for vectors.
        batch_size: The most images per batch.
        seed: The seed of order and views.
        augmentation: The strengths of training views; None for clean views.
        stream: The stream of the random numbers: that of label passes, or EVALUATION_STREAM.
        pass_number: The number of the pass. Each pass has its own order and views.
        crop: The crop of ten-crop evaluation, 0 to 9; only without an augmentation.
        in_order: Keeps the order of the images.
        share: The number of this process and the number of all that pass over the images together. Each has batches of its own.

    Yields:
        Views, float32 `[b, height, width, C]` in [0, 255] (or vectors `[b, D]`), and example indices, int64 `[b]`.
    """
    order, draws = _keyed(seed, stream, tf.constant(pass_number, tf.int64), len(images))
    if in_order:
        order = tf.range(len(images), dtype=tf.int64)
    num_batches = max(-(-len(images) // batch_size), share[1])
    bounds = tf.constant([i * len(images) // num_batches for i in range(num_batches + 1)], tf.int64)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        indices = order[bounds[step] : bounds[step + 1]]
        return indices, tf.gather(draws, indices)

    crops = _Crops(size, augmentation=augmentation, number=crop or 0, is_clean=augmentation is None and crop is None)
    return _with_views(images, tf.data.Dataset.range(share[0], num_batches, share[1]).map(batch), crops)


def random_views(images: ImageSet, *, size: tuple[int, ...], augmentation: Augmentation) -> View:
    """Returns the function that makes training views of any of the images, for those who draw images in another way.

    Args:
        images: The images, or vectors.
        size: (height, width) of the views; () for vectors.
        augmentation: The strengths of the views.
    """
    return _view(images, _Crops(size, augmentation=augmentation))


def with_rotations(batches: tf.data.Dataset, *, share: float = 1.0, replicas: int = 1) -> tf.data.Dataset:
    """Adds views turned by 90, 180 and 270 degrees, for a model with the outputs "heads" and "rotation" (RotNet, arXiv 1803.07728).

    Args:
        batches: A data set of (views `[B, S, S, C]`, example indices `[B]`) with a static B.
        share: The share of the views that is turned by each of the three angles: R views of a batch, at least 1. If it is at most a
            third, each angle has other views.
        replicas: The number of replicas that divide a batch. Each gets the same mixture.

    Yields:
        Views `[B + 3 R, S, S, C]`; a dict of targets, "heads" (example indices) and "rotation" (quarter turns 0 to 3), both int64; and a
        dict of sample weights. The loss of the heads counts unturned views only, weighted so that its mean is the mean over B. The loss
        of the rotation gives each angle the same weight.
    """

    def rotate(images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        count = images.shape[0] // replicas
        turned = max(1, round(share * count))
        total = count + 3 * turned

        def with_turns(values: tf.Tensor, turn: Callable[[tf.Tensor, int], tf.Tensor]) -> tf.Tensor:
            """Returns the values of all views with those of the turned ones, one replica after the other."""
            parts = []
            for own in tf.split(values, replicas):
                parts.append(own)
                parts += [turn(tf.roll(own, -quarter * turned, axis=0)[:turned], quarter + 1) for quarter in range(3)]
            return tf.concat(parts, axis=0)

        turns = with_turns(tf.zeros([replicas * count], tf.int64), lambda zeros, quarters: zeros + quarters)
        unturned = turns == 0
        weights = {
            "heads": tf.where(unturned, total / count, 0.0),
            "rotation": tf.where(unturned, total / (4 * count), total / (4 * turned)),
        }
        views = with_turns(images, tf.image.rot90)
        return views, {"heads": with_turns(indices, lambda kept, _: kept), "rotation": turns}, weights

    return batches.map(rotate, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _keyed(seed: int, stream: int, pass_number: tf.Tensor, num_examples: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the permutation of a pass, int64 `[N]`, and its random numbers, float32 `[N, NUM_DRAWS]`; row i is for example i."""
    key = tf.random.fold_in(tf.constant([seed, stream], tf.int64), pass_number)
    order = tf.random.experimental.stateless_shuffle(
        tf.range(num_examples, dtype=tf.int64), seed=tf.random.fold_in(key, 0), alg="philox"
    )
    draws = tf.random.stateless_uniform([num_examples, augment.NUM_DRAWS], seed=tf.random.fold_in(key, 1), alg="philox")
    return order, draws


class _Crops(NamedTuple):
    """The choice of the part of an image that a view shows."""

    size: tuple[int, ...]
    """(height, width) of the views; () for vectors."""
    augmentation: Augmentation | None = None
    """The strengths of random crops; None for clean views, or for one of the ten crops."""
    number: int = 0
    """The crop of ten-crop evaluation, 0 to 9, where crops are neither random nor clean."""
    is_clean: bool = False
    """True for clean views, which `augment.clean_view` makes."""

    def boxes(self, draws: tf.Tensor, aspect: tf.Tensor) -> tf.Tensor:
        """Returns boxes float32 `[B, 4]` for images of the aspect ratios `aspect` `[B]`; not for clean views."""
        target = self.size[1] / self.size[0]
        if self.augmentation is not None:
            return augment.crop_boxes(draws, aspect, self.augmentation, target_aspect=target)
        return augment.evaluation_crop_boxes(aspect, target, self.number)


def _with_views(images: ImageSet, steps: tf.data.Dataset, crops: _Crops) -> tf.data.Dataset:
    """Maps batches of (indices, random numbers) to batches of (views, indices)."""
    return untuned(
        steps.map(_view(images, crops), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
    )


def _view(images: ImageSet, crops: _Crops) -> View:
    """Returns the function that makes views of images or vectors."""
    return _views_of_vectors(images, crops.augmentation) if images.is_vectors else _views_of_images(images, crops)


def _views_of_images(images: ImageSet, crops: _Crops) -> View:
    """Returns the function that makes views of images."""
    crop = _crops_of_arrays(images.arrays, crops) if images.images is not None else _crops_of_files(images, crops)

    def view(indices: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.ensure_shape(crop(indices, draws), [None, *crops.size, images.channels])
        return pixels if crops.augmentation is None else augment.recolour(pixels, draws, crops.augmentation), indices

    return view


def _views_of_vectors(images: ImageSet, augmentation: Augmentation | None) -> View:
    """Returns the function that makes views of vectors."""
    all_vectors, moments = images.arrays.tensor, images.arrays.moments

    def view(indices: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        vectors = tf.ensure_shape(tf.gather(all_vectors, indices), [None, images.channels])
        return vectors if augmentation is None else augment.vary_vectors(vectors, moments, draws, augmentation), indices

    return view


def _crops_of_arrays(arrays: Arrays, crops: _Crops) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the function that crops whole batches of images in memory, which all have one size."""
    pixels = arrays.tensor
    aspect = pixels.shape[2] / pixels.shape[1]

    def crop(indices: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        if crops.is_clean:
            chosen = tf.gather(pixels, indices)
            whole = tuple(pixels.shape[1:3]) == crops.size
            return tf.cast(chosen, tf.float32) if whole else augment.clean_view(chosen, crops.size)
        boxes = crops.boxes(draws, tf.fill(tf.shape(indices), tf.constant(aspect, tf.float32)))
        return augment.crop_batch(pixels, indices, boxes, crops.size)

    return crop


def _crops_of_files(images: ImageSet, crops: _Crops) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the function that crops each file at its own size, as PyTorch's loaders do; files that are not in memory are decoded."""
    store = images.store

    def crop(indices: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        def one(args: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            place, draw = args
            if isinstance(store, DecodedFiles):
                image = tf.ensure_shape(store.image(place), [None, None, images.channels])
            else:
                image = decode_image(place, images.channels, images.rules)
            if crops.is_clean:
                return augment.clean_view(image, crops.size)
            sides = tf.cast(tf.shape(image), tf.float32)
            box = crops.boxes(draw[tf.newaxis], (sides[1] / sides[0])[tf.newaxis])[0]
            return augment.crop_one(image, box, crops.size)

        signature = tf.TensorSpec([*crops.size, images.channels], tf.float32)
        places = indices if isinstance(store, DecodedFiles) else images.encoded(indices)
        return tf.map_fn(one, (places, draws), fn_output_signature=signature)

    return crop
