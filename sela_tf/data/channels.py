"""The values of image files as pixels of one or three channels: on a background, at their depth, rounded once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from sela_tf.data.pixel_rules import PixelRules

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights, whose sum is 1, so that a white background stays white."""


_PIXELS_AT_ONCE = 2**21
"""Pixels that are laid on the background at once: the real numbers of an image of 170 million would take 8 GB."""


def called(*signature: tf.TensorSpec) -> Callable[[Callable[..., tf.Tensor]], Callable[..., tf.Tensor]]:
    """Returns a decorator of rare parts of a graph, which are traced once and called where they are needed.

    TensorFlow visits every operation of a branch that is part of the graph, taken or not, and traces and optimises it for every data set.
    """
    return tf.function(input_signature=signature, autograph=False, experimental_attributes={"_noinline": True})


def shown_pixels(pixels: tf.Tensor, channels: int, rules: PixelRules) -> tf.Tensor:
    """Lays stored pixels on the background, scales 16 bits, and converts the channels.

    Args:
        pixels: uint8 or uint16 `[..., C]`: gray (C = 1), gray and alpha (2), RGB (3) or RGBA (4).
        channels: 1 or 3.
        rules: The rules of the run.

    Returns:
        uint8 `[..., channels]`.
    """
    lay = _laid_function(pixels.dtype, len(pixels.shape), channels, rules)
    if pixels.dtype == tf.uint16:
        return lay(pixels)
    return tf.cond(tf.shape(pixels)[-1] % 2 == 1, lambda: _opaque(pixels, channels), lambda: lay(pixels))


def _opaque(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """Returns stored pixels without transparency, uint8 `[..., C]`, as `[..., channels]`."""
    if channels == 3 or len(pixels.shape) != 3:
        return to_channels(pixels, channels)
    # A luma takes real numbers, too.
    return tf.cond(tf.size(pixels) > 3 * _PIXELS_AT_ONCE, lambda: _large_luma(pixels), lambda: to_channels(pixels, channels))


@called(tf.TensorSpec([None, None, None], tf.uint8))
def _large_luma(pixels: tf.Tensor) -> tf.Tensor:
    """Returns a large opaque image as gray."""
    return _in_bands(pixels, functools.partial(to_channels, channels=1), 1)


def to_channels(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """Converts the channels of images.

    Gray becomes colour by repetition, colour becomes gray by its luma (ITU-R BT.601) in whole numbers, transparency is dropped.

    Args:
        pixels: Images `[..., C]`: gray (C = 1), gray and alpha (2), RGB (3) or RGBA (4).
        channels: 1 or 3.

    Returns:
        Images `[..., channels]` of the same dtype.
    """
    is_gray = tf.shape(pixels)[-1] <= 2
    if channels == 1:
        return tf.cond(is_gray, lambda: pixels[..., :1], lambda: _luma(pixels[..., :3]))
    return tf.cond(is_gray, lambda: tf.repeat(pixels[..., :1], 3, axis=-1), lambda: pixels[..., :3])


def _luma(pixels: tf.Tensor) -> tf.Tensor:
    """Returns the luma of RGB images `[..., 3]`, rounded to whole numbers, as `[..., 1]`."""
    whole = tf.saturate_cast(tf.round(pixels), tf.uint8)
    return tf.cast(tf.image.rgb_to_grayscale(whole), pixels.dtype)


@functools.cache
def _laid_function(dtype: tf.DType, rank: int, channels: int, rules: PixelRules) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function that lays stored pixels of a type and a rank on the background of the rules."""
    lay = functools.partial(_laid, channels=channels, rules=rules)
    if rank == 3:
        lay = functools.partial(_in_bands, lay=lay, channels=channels)
    return called(tf.TensorSpec([None] * rank, dtype))(lay)


def _in_bands(pixels: tf.Tensor, lay: Callable[[tf.Tensor], tf.Tensor], channels: int) -> tf.Tensor:
    """Returns `lay` of the rows of an image `[h, w, C]`, so many at once that its real numbers take little memory, whatever the image's size."""
    height = tf.shape(pixels)[0]
    rows = tf.maximum(_PIXELS_AT_ONCE // tf.maximum(tf.shape(pixels)[1], 1), 1)
    count = (height + rows - 1) // rows
    bands = tf.TensorArray(tf.uint8, size=count, infer_shape=False, element_shape=[None, None, channels])

    def step(band: tf.Tensor, done: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return band + 1, done.write(band, lay(pixels[band * rows : (band + 1) * rows]))

    def all_bands() -> tf.Tensor:
        return tf.while_loop(lambda band, _: band < count, step, (0, bands), parallel_iterations=1)[1].concat()

    return tf.cond(count > 1, all_bands, lambda: lay(pixels))


def _laid(pixels: tf.Tensor, channels: int, rules: PixelRules) -> tf.Tensor:
    """Returns stored pixels, uint8 or uint16 `[..., C]`, on the background, as uint8 `[..., channels]`."""
    full = pixels.dtype.max
    # Each type holds the whole numbers of the numerator exactly, so that its quotient is rounded as that of real numbers is.
    largest, real = (255, tf.float32) if pixels.dtype == tf.uint8 else (rules.largest, tf.float64)
    count = tf.shape(pixels)[-1]
    has_alpha = count % 2 == 0
    values = tf.cast(pixels, real)
    alpha = tf.cond(has_alpha, lambda: values[..., -1:], lambda: tf.fill(tf.shape(values[..., :1]), tf.constant(full, real)))

    def lay(colour: tf.Tensor, background: tuple[float, ...]) -> tf.Tensor:
        under = tf.constant(background, real) * largest
        return (tf.minimum(colour, largest) * 255.0 * alpha + under * (full - alpha)) / (largest * full)

    def whole(laid: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.floor(laid + 0.5), tf.uint8)

    background = rules.background or (0, 0, 0)
    if channels == 3:
        colour = tf.cond(count <= 2, lambda: tf.repeat(values[..., :1], 3, axis=-1), lambda: values[..., :3])
        return whole(lay(colour, background))
    gray = (sum(weight * part for weight, part in zip(_LUMA, background, strict=True)),)

    def luma() -> tf.Tensor:
        # TensorFlow's conversion of whole numbers, without its rounding before. Opaque images come out as `to_channels` has them.
        part = tf.cast(lay(values[..., :3], background), tf.float32) * (1.0 / 255)
        return tf.image.convert_image_dtype(tf.image.rgb_to_grayscale(part), tf.uint8, saturate=True)

    return tf.cond(count <= 2, lambda: whole(lay(values[..., :1], gray)), luma)
