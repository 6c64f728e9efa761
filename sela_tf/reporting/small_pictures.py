"""Small pictures of images, as jpeg files for tables and as a sprite, many of them in one png file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_SIDE, _QUALITY = 96, 90
"""Longest side of a picture in pixels, and the quality of its jpeg file."""
_SEEN = 64
"""Longest side, in pixels, up to which smaller images are enlarged by a whole number: viewers show pictures at their own size."""
_CELL, _SPRITE = 64, 8192
"""Longest sides of a picture within a sprite, and of the sprite (TensorBoard's limit), in pixels."""


def jpeg_files(views: tf.Tensor) -> list[bytes]:
    """Returns a small picture of each view as a jpeg file.

    Args:
        views: images [B, H, W, C] in [0, 255], gray or RGB.
    """
    small = shrunk(views, _bounded(views.shape[1:3], _SIDE))
    times = max(1, _SEEN // max(small.shape[1:3]))
    small = tf.repeat(tf.repeat(small, times, axis=1), times, axis=2)
    return [tf.io.encode_jpeg(picture, quality=_QUALITY, chroma_downsampling=False).numpy() for picture in small]


def sprite(pictures: Sequence[bytes]) -> tuple[bytes, tuple[int, int]]:
    """Returns a png file of all pictures in their order, row by row, and the (height, width) of each in it.

    Args:
        pictures: jpeg files of one size.
    """
    columns = math.ceil(math.sqrt(len(pictures)))
    size = _bounded(tf.io.decode_jpeg(pictures[0]).shape[:2], min(_CELL, _SPRITE // columns))
    cells = np.stack([shrunk(tf.io.decode_jpeg(picture)[tf.newaxis], size)[0].numpy() for picture in pictures])
    return tf.io.encode_png(sheet_of(cells, columns)).numpy(), size


def shrunk(views: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Returns images [B, H, W, C] in [0, 255] at (height, width) `size`, uint8, each pixel the mean of those that it stands for."""
    return tf.saturate_cast(tf.round(tf.image.resize(views, size, "area")), tf.uint8)


def sheet_of(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Returns pictures uint8 [n, h, w, C] beside and below each other in one, row by row; cells that are left over are black."""
    height, width, channels = pictures.shape[1:]
    rows = math.ceil(len(pictures) / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[: len(pictures)] = pictures
    return cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def _bounded(size: Sequence[int], side: int) -> tuple[int, int]:
    """Returns (height, width) of a picture of `size` when its longer side is at most `side`."""
    height, width = (length if max(size) <= side else max(1, round(length * side / max(size))) for length in size)
    return height, width
