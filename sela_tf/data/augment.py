"""Augmentation: random views of whole batches of images or vectors. Every function is pure; uniform random numbers are its arguments.

Pixels are float32 in [0, 255]. The same code serves gray (C = 1) and colour (C = 3); saturation, hue and grayscale do not apply to gray
images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf


class Augmentation(NamedTuple):
    """The strengths of an augmentation, with torchvision's meaning of each number.

    The defaults are those of the authors' PyTorch implementation for ImageNet.
    """

    crop_scale: float = 0.08
    """The smallest share of the image's area that a random resized crop keeps; 1 for the box of the clean view. Aspect ratios are 3/4 to 4/3."""
    flip_probability: float = 0.5
    """The probability of a horizontal flip."""
    brightness: float = 0.4
    """The range of the brightness factor, [1 - brightness, 1 + brightness]."""
    contrast: float = 0.4
    """The range of the contrast factor, [1 - contrast, 1 + contrast]."""
    saturation: float = 0.4
    """The range of the saturation factor, [1 - saturation, 1 + saturation]."""
    hue: float = 0.4
    """The range of the shift of hue, [-hue, hue], in turns of the colour circle; at most 0.5."""
    grayscale_probability: float = 0.2
    """The probability that an image becomes gray."""
    blur_probability: float = 0.0
    """The probability of a Gaussian blur with a standard deviation of 0.1 to 2 pixels and a kernel of a tenth of the side, as in SimCLR."""
    feature_noise: float = 0.0
    """The standard deviation of Gaussian noise on vectors, in units of the standard deviation of each value over the set."""
    feature_dropout: float = 0.0
    """The share of a vector's values that are replaced by their mean. The others are scaled about it so that the variance is kept."""


NUM_DRAWS = 12
"""The number of uniform random numbers in [0, 1) that one view of one image takes."""
_AREA, _RATIO, _TOP, _LEFT, _FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GRAY, _BLUR, _SIGMA = range(NUM_DRAWS)
_MARGIN = 2e-6
"""The distance of samples from the image's border, in shares of a side; larger than the rounding error of float32."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue. TensorFlow's rgb_to_grayscale, which decodes files to gray, has 0.2989; equal weights
would change the views of a seed."""


def crop_boxes(
    draws: tf.Tensor, aspect: tf.Tensor | float, augmentation: Augmentation, *, target_aspect: tf.Tensor | float
) -> tf.Tensor:
    """Returns the boxes of random resized crops.

    With a crop scale of 1 the boxes are those of the clean view, so that training sees the part of the image that is labelled, evaluated
    and served.

    Args:
        draws: Uniform random numbers, float32 `[B, NUM_DRAWS]`.
        aspect: Width over height of the images, scalar or `[B]`.
        augmentation: The crop scale and the probability of a flip.
        target_aspect: Width over height of the view.

    Returns:
        Boxes (top, left, bottom, right) in shares of the image's sides, float32 `[B, 4]`. A flipped box has left > right.
    """
    if augmentation.crop_scale < 1:
        area = augmentation.crop_scale + draws[:, _AREA] * (1.0 - augmentation.crop_scale)
        ratio = tf.exp((2.0 * draws[:, _RATIO] - 1.0) * math.log(4 / 3))
        down, across = draws[:, _TOP], draws[:, _LEFT]
    else:
        area = tf.ones_like(draws[:, _AREA]) * tf.minimum(aspect / target_aspect, target_aspect / aspect)
        ratio = tf.ones_like(area) * target_aspect
        # A box of the whole image can be moved by rounding errors only. It keeps the random place of earlier versions, so that a seed
        # gives the same bits as before.
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
    """Returns the box of the clean view: the largest centred box with the target's aspect ratio.

    Args:
        aspect: Width over height of the images, float32 `[B]`.
        target_aspect: Width over height of the view.

    Returns:
        Boxes (top, left, bottom, right) in shares of the image's sides, float32 `[B, 4]`.
    """
    height = tf.minimum(1.0, aspect / target_aspect)
    width = tf.minimum(1.0, target_aspect / aspect)
    return tf.stack([0.5 - height / 2, 0.5 - width / 2, 0.5 + height / 2, 0.5 + width / 2], axis=1)


NUM_CROPS = 10
"""The crops of ten-crop evaluation: four corners and the centre, and their mirror images."""
_CROP_SHARE = 224 / 256
"""The side of a crop as a share of the image's shorter side."""


def evaluation_crop_boxes(aspect: tf.Tensor, target_aspect: float, number: int) -> tf.Tensor:
    """Returns the box of one of the ten crops, whose side is 224/256 of the image's shorter side, as is usual on ImageNet.

    Args:
        aspect: Width over height of the images, float32 `[B]`.
        target_aspect: Width over height of the view.
        number: The crop, 0 to NUM_CROPS - 1; the second half are mirror images.

    Returns:
        Boxes (top, left, bottom, right) in shares of the image's sides, float32 `[B, 4]`.
    """
    top, left, bottom, right = tf.unstack(centre_boxes(aspect, target_aspect), axis=1)
    height, width = _CROP_SHARE * (bottom - top), _CROP_SHARE * (right - left)
    down, across = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))[number % 5]
    top, left = down * (1.0 - height), across * (1.0 - width)
    low, high = (left, left + width) if number < NUM_CROPS // 2 else (left + width, left)
    return tf.stack([top, low, top + height, high], axis=1)


def crop_batch(images: tf.Tensor, indices: tf.Tensor, boxes: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """Crops one box out of each image and resizes it, bilinearly between pixel centres.

    The whole image at its own size is returned unchanged. A box with left > right gives the mirror image.

    Args:
        images: All images, of one size, `[N, H, W, C]`.
        indices: The images to crop, int64 `[B]`.
        boxes: Boxes (top, left, bottom, right) in shares of the sides, float32 `[B, 4]`.
        size: (height, width) of the result, at least 2 x 2.

    Returns:
        float32 `[B, height, width, C]`.

    Raises:
        ValueError: A side of `size` is below 2.
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
    """Returns the clean view: the largest centred box with the aspect ratio of `size`, resized to it.

    The network sees this view in label passes, in evaluation and when it is served.

    Args:
        images: One image `[h, w, C]`, or a batch of images of one size `[B, h, w, C]`.
        size: (height, width) of the view.

    Returns:
        float32 `[height, width, C]`, or a batch of these.
    """
    sides = tf.cast(tf.shape(images)[-3:-1], tf.float32)
    box = centre_boxes((sides[1] / sides[0])[tf.newaxis], size[1] / size[0])[0]
    return crop_one(images, box, size)


def crop_one(images: tf.Tensor, box: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """Crops one box and resizes it with antialiasing.

    Args:
        images: One image `[h, w, C]`, or a batch of images of one size `[B, h, w, C]`.
        box: (top, left, bottom, right) in shares of the sides, float32 `[4]`; left > right gives the mirror image.
        size: (height, width) of the result.

    Returns:
        float32 `[height, width, C]`, or a batch of these.
    """
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
    """Varies brightness, contrast, saturation, hue, grayscale and blur of images, in this order.

    Args:
        images: float32 `[B, H, W, C]` in [0, 255].
        draws: Uniform random numbers of each image, float32 `[B, NUM_DRAWS]`.
        augmentation: The strengths.

    Returns:
        float32 `[B, H, W, C]` in [0, 255].
    """

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
    """Applies dropout and noise to vectors.

    One random number per value would be too many to draw for a whole pass. They are drawn here with a seed from the first vector's
    `draws`, and so depend on which vectors are in the batch.

    Args:
        vectors: float32 `[B, D]`.
        moments: Mean and standard deviation of each value over the set, two float32 `[D]`.
        draws: Uniform random numbers, float32 `[B, NUM_DRAWS]`.
        augmentation: The strengths.

    Returns:
        float32 `[B, D]`.
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
    """Returns the luma of images `[B, H, W, C]` as `[B, H, W, 1]`."""
    return images if images.shape[-1] == 1 else tf.reduce_sum(images * tf.constant(_LUMA), axis=-1, keepdims=True)


def _blur(images: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Blurs images `[B, H, W, C]` by Gaussians of standard deviations `sigma` `[B, 1, 1, 1]`, as sums of shifted copies."""
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
