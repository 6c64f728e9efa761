"""Features that need no training: pixels and histograms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.own_images.judging import Features
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.training.images import Data

_SIDE = 16
_BATCH = 500
_COLOUR_BINS, _GRAY_BINS = 8, 64


def pixels(views: np.ndarray) -> np.ndarray:
    """Returns the pixels of views `[B, H, W, C]`, reduced to 16 x 16 where they are more, in [0, 1], float32 `[B, D]`."""
    size = [min(_SIDE, side) for side in views.shape[1:3]]
    return tf.image.resize(views, size, method="area").numpy().reshape(len(views), -1) / 255.0


def histograms(views: np.ndarray) -> np.ndarray:
    """Returns the square roots of the shares of 8 x 8 x 8 colours, or of 64 grays, in views `[B, H, W, C]`, float32 `[B, D]`."""
    bins = _COLOUR_BINS if views.shape[-1] == 3 else _GRAY_BINS
    places = np.clip(views * (bins / 256), 0, bins - 1).astype(np.int64).reshape(len(views), -1, views.shape[-1])
    bin_of_pixel = places @ bins ** np.arange(views.shape[-1])
    counts = np.stack([np.bincount(each, minlength=bins ** views.shape[-1]) for each in bin_of_pixel])
    return np.sqrt(counts / bin_of_pixel.shape[1]).astype(np.float32)


def features_of_pixels(data: Data, function: Callable[[np.ndarray], np.ndarray]) -> Features:
    """Returns the features that `function` makes of batches of clean views, at the size that the network sees."""

    def of(images: ImageSet) -> np.ndarray:
        batches = inference_batches(images, size=data.size, batch_size=_BATCH, in_order=True)
        return np.concatenate([function(views.numpy()) for views, _ in batches])

    return Features(of(data.train), of(data.held_out))
