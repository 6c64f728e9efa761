"""Tests of images: can a mirrored or a turned one be told from one as it is?

Where a mirrored image can be told, no image looks like its mirrored view, and flips show a network what it will never see. Where a turned
one can be told, there is something to learn from telling the turn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from sklearn.neighbors import NearestNeighbors

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches

_SIDE = 16
_NEAREST, _NEIGHBOURS = 5, 20
"""The nearest of the 20 neighbours do not count: they may be the same picture in another colour, whose orientation tells that of no other."""
_CHANCE = 0.5
_FEWEST = 100
"""Images below which an accuracy is too uncertain to decide anything."""


class Orientation(NamedTuple):
    """The shares of images that are rightly told to be changed or not; 0.5 is chance."""

    mirrored: float = _CHANCE
    """The share where left and right are exchanged."""
    turned: float = _CHANCE
    """The share where images are turned by 90 degrees; chance where they are not square."""


def orientation_of(images: ImageSet, *, size: tuple[int, int], seed: int = 0, at_most: int = 4000) -> Orientation:
    """Returns how well the neighbours of an image by its pixels (16 x 16) tell whether it is mirrored, or turned.

    Half of the images, each as it is and changed, are what the others, of which half are changed, are compared with.

    Args:
        images: the images.
        size: (height, width) of the clean views.
        seed: the seed of the choice of images.
        at_most: the most images that are read.
    """
    images = images.take(np.random.default_rng(seed).permutation(len(images))[:at_most])
    side = [min(_SIDE, each) for each in size]
    batches = inference_batches(images, size=size, batch_size=EVALUATION_BATCH, in_order=True)
    views = np.concatenate([tf.image.resize(batch, side, method="area").numpy() for batch, _ in batches])
    turned = _told(views, np.rot90(views, axes=(1, 2))) if size[0] == size[1] else _CHANCE
    return Orientation(_told(views, views[:, :, ::-1]), turned)


def _told(views: np.ndarray, changed: np.ndarray) -> float:
    """Returns the share of the second half of the views `[N, H, W, C]` that is rightly told to be changed or not."""
    count = len(views)
    half = count // 2
    if half < _FEWEST:
        return _CHANCE
    views, changed = views.reshape(count, -1), changed.reshape(count, -1)
    neighbours = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(np.concatenate([views[:half], changed[:half]]))
    is_changed = np.arange(half, count) % 2 == 0
    found = neighbours.kneighbors(np.where(is_changed[:, np.newaxis], changed[half:], views[half:]), return_distance=False)
    says_changed = (found[:, _NEAREST:] >= half).mean(axis=1) > 0.5
    return float(np.mean(says_changed == is_changed))
