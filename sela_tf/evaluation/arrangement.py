"""A look at images without any network: do they differ, and are their pixels arranged, as in pictures, or not, as in noise?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches

_IMAGES, _VALUES = 500, 2**24
_KEY = 13
_SAME = 1.0
"""Variance of the pixels, in squared gray levels, below which images are the same but for their brightness."""


class Arrangement(NamedTuple):
    """The variation of the images of a set, and the likeness of neighbouring pixels."""

    deviation: float
    """Standard deviation of the pixels in gray levels, without the mean image of the set and each image's own brightness."""
    neighbour_correlation: float
    """Correlation of neighbouring pixels in that remainder; 0 where there is none. Pixels in a random order have about 0."""

    @property
    def images_differ(self) -> bool:
        """True if images differ in more than their brightness."""
        return self.deviation**2 > _SAME


def measure_arrangement(images: ImageSet, *, size: tuple[int, ...], seed: int = 0) -> Arrangement | None:
    """Measures the arrangement of the pixels, in gray, of at most 500 images of a set.

    Images of one size are taken as they are, unless they are reduced when they are decoded. A resized image
    has pixels that are made of common ones, so that in images of many sizes the pixels are compared with those two further.

    Args:
        images: the images.
        size: (height, width) of the views that images of many sizes are taken in.
        seed: seed of the choice of images.

    Returns:
        The measures; None for vectors, whose values have no neighbours.
    """
    if images.is_vectors:
        return None
    own = images.image_size
    is_reduced = images.images is None and own is not None and 0 < images.rules.shorter_side < min(own)
    size, distance = (own, 1) if own and not is_reduced else (size, 2)
    count = max(2, min(_IMAGES, _VALUES // (size[0] * size[1] * images.channels), len(images)))
    chosen = images.take(np.sort(np.random.default_rng([seed, _KEY]).permutation(len(images))[:count]))
    pixels = np.concatenate(
        [views.numpy().mean(axis=3) for views, _ in inference_batches(chosen, size=size, batch_size=EVALUATION_BATCH)]
    )
    pixels -= pixels.mean(axis=0)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    variance = float(np.square(pixels).mean())
    if variance <= _SAME:
        return Arrangement(variance**0.5, 0.0)
    across = (pixels[:, :, distance:] * pixels[:, :, :-distance]).mean()
    down = (pixels[:, distance:] * pixels[:, :-distance]).mean()
    return Arrangement(variance**0.5, float((across + down) / 2 / variance))
