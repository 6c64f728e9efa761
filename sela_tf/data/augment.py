"""Random views of images, whole batches at a time. Every function is pure: the randomness comes in as uniform draws.

Pixels are float32 in [0, 255]; the same code serves gray (C = 1) and colour (C = 3), where gray images skip what has no meaning
for them (saturation, hue, grayscale).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf


class Augmentation(NamedTuple):
    """Strengths; torchvision's meaning of each number. The defaults are the reference's for ImageNet."""

    crop_scale: float = 0.08
    """Smallest share of the image's area that a random resized crop keeps; 1 for the clean view's box. Aspect ratios 3/4 to 4/3."""
    flip_probability: float = 0.5
    brightness: float = 0.4
    """Factor drawn from [1 - brightness, 1 + brightness]; likewise contrast and saturation."""
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    """Turn of the colour circle drawn from [-hue, hue], at most .5."""
    grayscale_probability: float = 0.2
    blur_probability: float = 0.0
    """Gaussian blur of a standard deviation between .1 and 2 pixels, over a tenth of the image's side (SimCLR)."""
    feature_noise: float = 0.0
    """Of vectors only: standard deviation of Gaussian noise, in those of each value over the set."""
    feature_dropout: float = 0.0
    """Of vectors only: share of the values that are replaced by their mean; the others are spread so that the variance lasts."""


NUM_DRAWS = 12
"""Uniform numbers in [0, 1) that one view of one image takes."""
_AREA, _RATIO, _TOP, _LEFT, _FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GRAY, _BLUR, _SIGMA = range(NUM_DRAWS)
_MARGIN = 2e-6
_LUMA = (0.299, 0.587, 0.114)


def crop_boxes(
    draws: tf.Tensor, aspect: tf.Tensor | float, augmentation: Augmentation, *, target_aspect: tf.Tensor | float
) -> tf.Tensor:
    """Boxes of random resized crops, [B, 4] as (top, left, bottom, right) in shares of the image's sides.

    With a crop scale of 1 nothing is cropped at random: boxes are those of the clean view, so that images are not squeezed and training
    sees what is labelled, evaluated and served.

    Args:
        draws: [B, NUM_DRAWS].
        aspect: width over height of the images, scalar or [B].
        augmentation: its crop scale and probability of a flip. A flipped box has left > right.
        target_aspect: width over height of the view.
    """
    if augmentation.crop_scale < 1:
        area = augmentation.crop_scale + draws[:, _AREA] * (1.0 - augmentation.crop_scale)
        ratio = tf.exp((2.0 * draws[:, _RATIO] - 1.0) * math.log(4 / 3))
        down, across = draws[:, _TOP], draws[:, _LEFT]
    else:
        area = tf.ones_like(draws[:, _AREA]) * tf.minimum(aspect / target_aspect, target_aspect / aspect)
        ratio = tf.ones_like(area) * target_aspect
        # whole images leave no room but what rounding makes, and keep the bits that they had when such boxes were placed at random
        whole = tf.equal(area, 1.0)
        down, across = tf.where(whole, draws[:, _TOP], 0.5), tf.where(whole, draws[:, _LEFT], 0.5)
    height = tf.minimum(1.0, tf.sqrt(area / ratio * aspect))
    width = tf.minimum(1.0, tf.sqrt(area * ratio / aspect))
    top = down * (1.0 - height)
    left = across * (1.0 - width)
    flip = draws[:, _FLIP] < augmentation.flip_probability
    right = left + width
    return tf.stack([top, tf.where(flip, right, left), top + height, tf.where(flip, left, right)], axis=1)


def centre_boxes(aspect: tf.Tensor, target_aspect: float) -> tf.Tensor:
    """The largest centred box of the target's shape, [B, 4]: the clean view. `aspect` [B] is width over height."""
    height = tf.minimum(1.0, aspect / target_aspect)
    width = tf.minimum(1.0, target_aspect / aspect)
    return tf.stack([0.5 - height / 2, 0.5 - width / 2, 0.5 + height / 2, 0.5 + width / 2], axis=1)


NUM_CROPS = 10
"""Of ten-crop evaluation: four corners and the centre, and their mirror images."""
_CROP_SHARE = 224 / 256


def evaluation_crop_boxes(aspect: tf.Tensor, target_aspect: float, number: int) -> tf.Tensor:
    """The same one of the NUM_CROPS boxes of every image, [B, 4]: 224 of the 256 pixels of its shorter side, as is usual on ImageNet."""
    top, left, bottom, right = tf.unstack(centre_boxes(aspect, target_aspect), axis=1)
    height, width = _CROP_SHARE * (bottom - top), _CROP_SHARE * (right - left)
    down, across = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))[number % 5]
    top, left = down * (1.0 - height), across * (1.0 - width)
    low, high = (left, left + width) if number < NUM_CROPS // 2 else (left + width, left)
    return tf.stack([top, low, top + height, high], axis=1)


def crop_batch(images: tf.Tensor, indices: tf.Tensor, boxes: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """Crops `boxes` [B, 4] out of `images[indices]`, all of one size, and resizes them to `size`: float32 [B, height, width, C].

    Bilinear between pixel centres, so that the whole image at its own size comes back as it is. A reversed box is a flip.
    """

    def corners(low: tf.Tensor, high: tf.Tensor, source: int, target: int) -> list[tf.Tensor]:
        # crop_and_resize samples from corner to corner in units of (source - 1); the first and the last sample are half a target
        # pixel inside the box. What lies outside the centres of the border pixels takes the border's value. A sample that rounding
        # puts a hair outside would come out black, hence a margin that is larger than float32's error.
        inset = 0.5 * (high - low) / target
        edges = (low + inset, high - inset)
        return [tf.clip_by_value((edge * source - 0.5) / max(source - 1, 1), _MARGIN, 1.0 - _MARGIN) for edge in edges]

    top, left, bottom, right = tf.unstack(boxes, axis=1)
    y1, y2 = corners(top, bottom, images.shape[1], size[0])
    x1, x2 = corners(left, right, images.shape[2], size[1])
    if size[0] == 1 or size[1] == 1:
        raise ValueError(f"`size` must be at least 2 x 2. Received: size={size}")
    return tf.image.crop_and_resize(images, tf.stack([y1, x1, y2, x2], axis=1), tf.cast(indices, tf.int32), size)


def clean_view(images: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """The largest centred box of the target's shape, of one image [h, w, C] of any size or of a batch of one size, resized to `size`.

    This is what a network sees wherever images are not varied: in label passes, in evaluation, and when it is served.
    """
    sides = tf.cast(tf.shape(images)[-3:-1], tf.float32)
    box = centre_boxes((sides[1] / sides[0])[tf.newaxis], size[1] / size[0])[0]
    return crop_one(images, box, size)


def crop_one(images: tf.Tensor, box: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """Crops one `box` [4] out of an image [h, w, C] of any size, or a batch of one size, and resizes it with antialiasing to `size`:
    float32 [height, width, C], or a batch of these."""
    sides = tf.cast(tf.shape(images)[-3:-1], tf.float32)
    flipped = box[1] > box[3]
    low = tf.stack([box[0], tf.minimum(box[1], box[3])])
    high = tf.stack([box[2], tf.maximum(box[1], box[3])])
    first = tf.cast(tf.round(low * sides), tf.int32)
    last = tf.maximum(first + 1, tf.cast(tf.round(high * sides), tf.int32))
    first = tf.minimum(first, last - 1)
    crop = images[..., first[0] : last[0], first[1] : last[1], :]
    crop = tf.clip_by_value(tf.image.resize(crop, size, antialias=True), 0.0, 255.0)
    return tf.cond(flipped, lambda: tf.reverse(crop, [-2]), lambda: crop)


def recolour(images: tf.Tensor, draws: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """Brightness, contrast, saturation, hue, grayscale and blur of [B, H, W, C], in this order; each image has its draws [B, D]."""

    def draw(column: int) -> tf.Tensor:
        return draws[:, column, tf.newaxis, tf.newaxis, tf.newaxis]

    def factor(column: int, strength: float) -> tf.Tensor:
        return 1.0 + strength * (2.0 * draw(column) - 1.0)

    def blend(images: tf.Tensor, base: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(base + factor * (images - base), 0.0, 255.0)

    colour = images.shape[-1] == 3
    if augmentation.brightness:
        images = tf.clip_by_value(images * factor(_BRIGHTNESS, augmentation.brightness), 0.0, 255.0)
    if augmentation.contrast:
        mean = tf.reduce_mean(_gray(images), axis=[1, 2, 3], keepdims=True)
        images = blend(images, mean, factor(_CONTRAST, augmentation.contrast))
    if augmentation.saturation and colour:
        images = blend(images, _gray(images), factor(_SATURATION, augmentation.saturation))
    if augmentation.hue and colour:
        hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(images / 255.0), axis=-1)
        turn = augmentation.hue * (2.0 * draw(_HUE)[..., 0] - 1.0)
        images = 255.0 * tf.image.hsv_to_rgb(tf.stack([tf.math.floormod(hue + turn, 1.0), saturation, value], axis=-1))
    if augmentation.grayscale_probability and colour:
        images = tf.where(draw(_GRAY) < augmentation.grayscale_probability, _gray(images), images)
    if augmentation.blur_probability:
        blurred = _blur(images, 0.1 + 1.9 * draw(_SIGMA))
        images = tf.where(draw(_BLUR) < augmentation.blur_probability, blurred, images)
    return images


def vary_vectors(
    vectors: tf.Tensor, moments: tuple[tf.Tensor, tf.Tensor], draws: tf.Tensor, augmentation: Augmentation
) -> tf.Tensor:
    """Dropout and noise of vectors [B, D], whose values have the mean and standard deviation `moments` over the set.

    As many random numbers as values are too many to be drawn for a whole pass: they are keyed on the first vector's `draws` [B, ...],
    and so depend on which vectors make up a batch.
    """
    mean, deviation = moments
    key = tf.cast(draws[0, :2] * 2.0**31, tf.int64)
    if augmentation.feature_dropout:
        kept = tf.random.stateless_uniform(tf.shape(vectors), seed=key, alg="philox") >= augmentation.feature_dropout
        vectors = tf.where(kept, mean + (vectors - mean) / (1.0 - augmentation.feature_dropout), mean)
    if augmentation.feature_noise:
        noise = tf.random.stateless_normal(tf.shape(vectors), seed=tf.random.fold_in(key, 1), alg="philox")
        vectors += augmentation.feature_noise * deviation * noise
    return vectors


def _gray(images: tf.Tensor) -> tf.Tensor:
    """[B, H, W, 1]."""
    return images if images.shape[-1] == 1 else tf.reduce_sum(images * tf.constant(_LUMA), axis=-1, keepdims=True)


def _blur(images: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Gaussian blur with a standard deviation of its own for each image, sigma [B, 1, 1, 1], as sums of shifted copies."""
    for axis, size in ((1, images.shape[1]), (2, images.shape[2])):
        radius = max(1, size // 20)
        weights = [tf.exp(-0.5 * tf.square(offset / sigma)) for offset in range(-radius, radius + 1)]
        total = tf.add_n(weights)
        padding = [[0, 0]] * 4
        padding[axis] = [radius, radius]
        padded = tf.pad(images, padding, mode="SYMMETRIC")
        shifted = [padded[:, i : i + size] if axis == 1 else padded[:, :, i : i + size] for i in range(2 * radius + 1)]
        images = tf.add_n([weight / total * copy for weight, copy in zip(weights, shifted, strict=True)])
    return images
