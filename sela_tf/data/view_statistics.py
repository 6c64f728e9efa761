"""Statistics of the clean views of a set: its mean and variance, and how many of its images are alike or empty."""

from __future__ import annotations

import collections
import hashlib
from typing import NamedTuple

import numpy as np

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches


class ViewStatistics(NamedTuple):
    """Statistics of clean views, taken in one pass over them."""

    mean: np.ndarray
    """The mean of each channel in [0, 255], float64 `[C]`."""
    variance: np.ndarray
    """The variance of each channel, float64 `[C]`; 1 for a constant channel."""
    num_views: int
    """The number of views."""
    num_same: int
    """The number of views that are identical to another one."""
    num_constant: int
    """The number of views of a single colour."""

    def in_words(self) -> str:
        """Returns a line about views that are all alike or empty; "" if there are none."""
        found = []
        if self.num_same:
            found.append(f"{self.num_same} are each identical to another")
        if self.num_constant:
            found.append(f"{self.num_constant} are of a single colour")
        return f"of {self.num_views} training images, as the network sees them, {' and '.join(found)}" if found else ""


def view_statistics(images: ImageSet, *, size: tuple[int, ...], seed: int = 0, at_most: int = 10_000) -> ViewStatistics:
    """Returns statistics of the clean views of a set.

    Args:
        images: The images, or vectors.
        size: (height, width) of the views; () for vectors.
        seed: The seed of the choice of images if there are more than `at_most`.
        at_most: The most images that are read.
    """
    if len(images) > at_most:
        images = images.take(np.random.default_rng(seed).permutation(len(images))[:at_most])
    total = np.zeros((2, images.channels))
    pixels = num_constant = 0
    digests: collections.Counter[bytes] = collections.Counter()
    for batch, _ in inference_batches(images, size=size, batch_size=EVALUATION_BATCH):
        views = batch.numpy()
        digests.update(hashlib.blake2b(view.data, digest_size=16).digest() for view in views)
        if size:
            num_constant += int((views == views[:, :1, :1]).all(axis=(1, 2, 3)).sum())
        values = views.astype(np.float64).reshape(-1, images.channels)
        total += [values.sum(axis=0), np.square(values).sum(axis=0)]
        pixels += len(values)
    mean = total[0] / pixels
    # A constant channel carries no information; dividing it by 1 keeps it finite.
    variance = total[1] / pixels - mean**2
    num_same = sum(count for count in digests.values() if count > 1)
    return ViewStatistics(mean, np.where(variance > 1e-6, variance, 1.0), len(images), num_same, num_constant)
