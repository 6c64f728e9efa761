"""The pixel rules of a run, made of its training images, and image sets by these rules."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os

import numpy as np
import tensorflow as tf

from sela_tf.data.decoding import decode_image, stored_pixels
from sela_tf.data.headers import image_kind
from sela_tf.data.image_set import ImageSet, Splits
from sela_tf.data.pixel_rules import BACKGROUNDS, FULL_DEPTH, OLD_RULES, PixelRules, reduced_sizes
from sela_tf.data.records import Records
from sela_tf.data.stores import Arrays, EncodedStore

_AT_ONCE, _PARALLEL = 500, 16
_MOST_OF_MEAN = 10_000
"""The most images that the mean colour is taken over."""


def make_rules(train: ImageSet, background: str, *, shorter_side: int = 0, seed: int = 0) -> PixelRules:
    """Makes the rules of a run.

    Args:
        train: The training images.
        background: "white", "black", "mean" for the mean colour of the training images, or "old" for the rules of older runs.
        shorter_side: The bound on the shorter side of images that are decoded when they are needed; 0 for none.
        seed: The seed of the choice of images for the mean colour, if there are more than 10,000.
    """
    if background == "old":
        return OLD_RULES
    largest = FULL_DEPTH
    # Records that were made before there were rules do not know it.
    if isinstance(train.store, EncodedStore) and train.store.largest is not None:
        largest = int(train.store.largest.max()) or FULL_DEPTH
    bound = shorter_side if isinstance(train.store, EncodedStore) else 0
    if background != "mean" or train.is_vectors:
        return PixelRules(BACKGROUNDS.get(background, BACKGROUNDS["white"]), largest, bound)
    chosen = train.take(np.random.default_rng(seed).permutation(len(train))[:_MOST_OF_MEAN])
    red, green, blue = (int(part) for part in np.rint(_mean_colour(chosen, largest)))
    return PixelRules((red, green, blue), largest, bound)


def with_rules(splits: Splits, rules: PixelRules, *, memory_limit: int) -> Splits:
    """Returns the sets of a data set by the rules of a run. Records of one size are decoded if all of them fit into memory.

    Args:
        splits: The sets of a data set.
        rules: The rules of the run.
        memory_limit: Bytes that decoded images may take in memory.
    """
    fits = decoded_bytes(splits.train, splits.eval) <= memory_limit

    def ruled(images: ImageSet) -> ImageSet:
        images = dataclasses.replace(images, rules=rules)
        return _decoded(images) if fits and _decoded_size(images) else images

    return splits._replace(train=ruled(splits.train), eval=None if splits.eval is None else ruled(splits.eval))


def decoded_bytes(*sets: ImageSet | None) -> int:
    """Returns the bytes that records of one size take when they are decoded."""
    return sum(_decoded_size(images) for images in sets if images is not None)


def saturation_in_words(images: ImageSet) -> str:
    """Returns a line about images whose 16-bit values exceed the largest of the training images; "" if there are none."""
    largest = images.store.largest if isinstance(images.store, EncodedStore) else None
    count = 0 if largest is None else int((largest > images.rules.largest).sum())
    if not count or images.rules.are_old:
        return ""
    return (
        f"{count} images of {images.full_name} have 16-bit values above {images.rules.largest}, the largest of the training images: these "
        "values become 255, too"
    )


def _decoded_size(images: ImageSet) -> int:
    """Returns the bytes that records of one size take when they are decoded; 0 for any other set, which is not decoded at once."""
    if not isinstance(images.store, Records) or not images.image_size:
        return 0
    height, width = _reduced_size(images)
    return len(images) * height * width * images.channels


def _reduced_size(images: ImageSet) -> tuple[int, int]:
    """Returns (height, width) of the decoded images of a set that all have one size."""
    height, width = reduced_sizes(np.array([images.image_size]), images.rules.shorter_side)[0]
    return int(height), int(width)


def _decoded(images: ImageSet) -> ImageSet:
    """Returns the same images, decoded into memory."""
    height, width = _reduced_size(images)
    pixels = np.empty((len(images), height, width, images.channels), np.uint8)
    signature = tf.TensorSpec([height, width, images.channels], tf.uint8)

    @tf.function(reduce_retracing=True)
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        def one(data: tf.Tensor) -> tf.Tensor:
            return decode_image(data, images.channels, images.rules)

        return tf.map_fn(one, encoded, fn_output_signature=signature, parallel_iterations=_PARALLEL)

    for start in range(0, len(images), _AT_ONCE):
        # The files are read outside of a graph. Inside one, TensorFlow would word the error of a damaged record.
        some = tf.range(start, min(start + _AT_ONCE, len(images)), dtype=tf.int64)
        pixels[start : start + len(some)] = decode(images.encoded(some)).numpy()
    return dataclasses.replace(images, store=Arrays(pixels), image_size=(height, width))


def _mean_colour(images: ImageSet, largest: int) -> np.ndarray:
    """Returns the mean of the mean colours of the images, transparent parts left out, float64 `[3]` in [0, 255]."""
    if images.images is not None:
        return np.broadcast_to(images.images.mean(axis=(0, 1, 2), dtype=np.float64), 3)

    def mean_of(place: int) -> np.ndarray:
        data = images.encoded(tf.constant([place], tf.int64))[0].numpy()
        return visible_mean(stored_pixels(data, image_kind(data) or ""), largest)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        means = np.array(list(pool.map(mean_of, range(len(images)))))
    visible = means[np.isfinite(means).all(axis=1)]
    return visible.mean(axis=0) if len(visible) else np.array(BACKGROUNDS["white"], np.float64)


def visible_mean(pixels: np.ndarray, largest: int) -> np.ndarray:
    """Returns the mean colour of stored pixels, each weighted by its opacity.

    Args:
        pixels: uint8 or uint16 `[h, w, C]`: gray (C = 1), gray and alpha (2), RGB (3) or RGBA (4).
        largest: The value of 16-bit pixels that becomes 255.

    Returns:
        float64 `[3]` in [0, 255]; NaN for an image without a visible part.
    """
    count = pixels.shape[-1]
    colours = pixels[..., : count - (count % 2 == 0)].astype(np.float64)
    if pixels.dtype == np.uint16:
        colours = np.minimum(colours, largest) * (255 / largest)
    opacity = pixels[..., -1:].astype(np.float64) if count % 2 == 0 else np.ones((*pixels.shape[:2], 1))
    total = opacity.sum()
    mean = (colours * opacity).sum(axis=(0, 1)) / total if total else np.full(1, np.nan)
    return np.broadcast_to(mean, 3)
