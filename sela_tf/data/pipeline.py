"""From an ImageSet to batches of (image, example index), a pure function of (data, seed, stream, pass).

The index is all that the training step gets to know of an image's label: the loss looks the label up (see self_labelling), so a
relabelling reaches the very next batch, however many batches are prefetched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.compat.autotuning import untuned
from sela_tf.data import augment
from sela_tf.data.augment import Augmentation
from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.decoding import decode_image
from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays

# The streams that randomness is keyed on, with the seed, the pass and the example's index.
_TRAINING, _LABELLING = 1, 2


def training_batches(
    images: ImageSet,
    *,
    size: tuple[int, ...],
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
) -> tf.data.Dataset:
    """Training views for the steps from `first_step` up to, not including, `last_step`.

    Each epoch has its own permutation, and each image its own draws in each epoch. The last partial batch is left out; another
    epoch's permutation has its images elsewhere.

    Yields:
        (float32 [batch_size, height, width, C] in [0, 255], int64 [batch_size]).
    """
    steps_per_epoch = len(images) // batch_size
    first_epoch = first_step // steps_per_epoch
    last_epoch = -(-last_step // steps_per_epoch)

    def epoch_indices(epoch: tf.Tensor) -> tf.data.Dataset:
        order, draws = _keyed(seed, _TRAINING, epoch, len(images))

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            indices = order[step * batch_size : (step + 1) * batch_size]
            return tf.ensure_shape(indices, [batch_size]), tf.gather(draws, indices)

        return tf.data.Dataset.range(steps_per_epoch).map(batch)

    steps = tf.data.Dataset.range(first_epoch, last_epoch).flat_map(epoch_indices)
    steps = steps.skip(first_step - first_epoch * steps_per_epoch).take(last_step - first_step)
    return _with_views(images, steps, _Crops(size, augmentation=augmentation))


def inference_batches(
    images: ImageSet,
    *,
    size: tuple[int, ...],
    batch_size: int,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    pass_number: int = 0,
    crop: int | None = None,
    in_order: bool = False,
) -> tf.data.Dataset:
    """Every image once, in an order of its own: clean views, training views where an augmentation is given, or one of ten crops.

    Batches are as equal as they can be, so that none is too small for the batch statistics that a label pass may use.

    Args:
        images: N of them.
        size: (height, width); () of vectors.
        batch_size: upper bound.
        seed: with `pass_number`, the key of order and views.
        augmentation: None for the clean view: the largest centred box of the target's shape.
        pass_number: the number of the pass, from 0; a run numbers its label passes by their optimizer steps.
        crop: of ten-crop evaluation, 0 … 9; without an augmentation.
        in_order: image 0 first.

    Yields:
        (float32 [b, height, width, C] in [0, 255], int64 [b]).
    """
    order, draws = _keyed(seed, _LABELLING, tf.constant(pass_number, tf.int64), len(images))
    if in_order:
        order = tf.range(len(images), dtype=tf.int64)
    num_batches = -(-len(images) // batch_size)
    bounds = tf.constant([i * len(images) // num_batches for i in range(num_batches + 1)], tf.int64)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        indices = order[bounds[step] : bounds[step + 1]]
        return indices, tf.gather(draws, indices)

    return _with_views(images, tf.data.Dataset.range(num_batches).map(batch), _Crops(size, augmentation=augmentation, number=crop))


def with_rotations(batches: tf.data.Dataset, *, share: float = 1.0, replicas: int = 1) -> tf.data.Dataset:
    """Every view as it is, and a share of them also turned by 90, 180 and 270 degrees, for a model with the outputs "heads" and "rotation".

    Args:
        batches: of (views [B, S, S, C], example indices [B]), B known.
        share: of the views, that each of the three turns is shown of: R of a batch, at least 1. Up to a third, each turn has others.
        replicas: that share a batch, and get the same mixture of it.

    Yields:
        views [B + 3 R, S, S, C]; {"heads": example indices, "rotation": quarter turns}; weights of both. The heads' loss counts for the
        views that were not turned, so weighted that its mean over all is the mean over B; the rotation's counts each turn alike.
    """

    def rotate(images: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        count = images.shape[0] // replicas
        turned = max(1, round(share * count))
        total = count + 3 * turned

        def with_turns(values: tf.Tensor, turn: Callable[[tf.Tensor, int], tf.Tensor]) -> tf.Tensor:
            """The values of all views, of one replica after the other."""
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


def channel_statistics(
    images: ImageSet, *, size: tuple[int, ...], seed: int = 0, at_most: int = 10_000
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel over the clean views of (at most) so many images, in [0, 255]: two float64 [C]."""
    if len(images) > at_most:
        images = images.take(np.random.default_rng(seed).permutation(len(images))[:at_most])
    total = np.zeros((2, images.channels))
    pixels = 0
    for batch, _ in inference_batches(images, size=size, batch_size=EVALUATION_BATCH):
        values = batch.numpy().astype(np.float64).reshape(-1, images.channels)
        total += [values.sum(axis=0), np.square(values).sum(axis=0)]
        pixels += len(values)
    mean = total[0] / pixels
    # a constant channel carries nothing; dividing by 1 keeps it finite
    variance = total[1] / pixels - mean**2
    return mean, np.where(variance > 1e-6, variance, 1.0)


def _keyed(seed: int, stream: int, pass_number: tf.Tensor, num_examples: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The permutation int64 [N] of a pass, and the draws [N, D] of its views, the i-th row for example i."""
    key = tf.random.fold_in(tf.constant([seed, stream], tf.int64), pass_number)
    order = tf.random.experimental.stateless_shuffle(
        tf.range(num_examples, dtype=tf.int64), seed=tf.random.fold_in(key, 0), alg="philox"
    )
    draws = tf.random.stateless_uniform([num_examples, augment.NUM_DRAWS], seed=tf.random.fold_in(key, 1), alg="philox")
    return order, draws


class _Crops(NamedTuple):
    """Which part of an image a view shows."""

    size: tuple[int, ...]
    augmentation: Augmentation | None = None
    """At random; None for the largest centred box of the target's shape, or the `number`-th of ten."""
    number: int | None = None

    def boxes(self, draws: tf.Tensor, aspect: tf.Tensor) -> tf.Tensor:
        """[B, 4], for images of these aspects [B]."""
        target = self.size[1] / self.size[0]
        if self.augmentation is not None:
            return augment.crop_boxes(draws, aspect, self.augmentation, target_aspect=target)
        if self.number is not None:
            return augment.evaluation_crop_boxes(aspect, target, self.number)
        return augment.centre_boxes(aspect, target)

    @property
    def is_clean(self) -> bool:
        """The same for everyone who looks."""
        return self.augmentation is None and self.number is None


_View = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def _with_views(images: ImageSet, steps: tf.data.Dataset, crops: _Crops) -> tf.data.Dataset:
    """(indices, draws) to (views, indices)."""
    view = _views_of_vectors(images, crops.augmentation) if images.is_vectors else _views_of_images(images, crops)
    return untuned(steps.map(view, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE))


def _views_of_images(images: ImageSet, crops: _Crops) -> _View:
    crop = _crops_of_arrays(images.arrays, crops) if images.images is not None else _crops_of_files(images, crops)

    def view(indices: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.ensure_shape(crop(indices, draws), [None, *crops.size, images.channels])
        return pixels if crops.augmentation is None else augment.recolour(pixels, draws, crops.augmentation), indices

    return view


def _views_of_vectors(images: ImageSet, augmentation: Augmentation | None) -> _View:
    all_vectors, moments = images.arrays.tensor, images.arrays.moments

    def view(indices: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        vectors = tf.ensure_shape(tf.gather(all_vectors, indices), [None, images.channels])
        return vectors if augmentation is None else augment.vary_vectors(vectors, moments, draws, augmentation), indices

    return view


def _crops_of_arrays(arrays: Arrays, crops: _Crops) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Whole batches straight out of the array: images of one size."""
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
    """Each file decoded and cropped at its own size, as PyTorch does."""

    def crop(indices: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        def one(args: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            data, draw = args
            image = decode_image(data, images.channels)
            if crops.is_clean:
                return augment.clean_view(image, crops.size)
            sides = tf.cast(tf.shape(image), tf.float32)
            box = crops.boxes(draw[tf.newaxis], (sides[1] / sides[0])[tf.newaxis])[0]
            return augment.crop_one(image, box, crops.size)

        signature = tf.TensorSpec([*crops.size, images.channels], tf.float32)
        return tf.map_fn(one, (images.encoded(indices), draws), fn_output_signature=signature)

    return crop
