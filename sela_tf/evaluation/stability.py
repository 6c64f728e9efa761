"""Measures of a network that need no classes: does it see the same in two views of an image, and do its heads agree?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.data.augment import Augmentation
from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import EVALUATION_STREAM, inference_batches
from sela_tf.evaluation.bootstrap import resampled_means
from sela_tf.evaluation.contingency import ResampledTables, chance_corrected_agreement
from sela_tf.evaluation.knn import nearest_images
from sela_tf.evaluation.outputs import Passes

NEIGHBOURS = 10
"""Neighbours k of an image whose stability is measured."""
_PAIRING_KEY = 12


class ViewPairs(NamedTuple):
    """Two random views of each of M held-out images, which every network is shown."""

    first: tf.data.Dataset
    second: tf.data.Dataset
    num_images: int


def view_pairs(images: ImageSet, *, size: tuple[int, ...], augmentation: Augmentation, seed: int) -> ViewPairs:
    """Returns batches of the views of `images`.

    Args:
        images: M held-out images.
        size: (height, width) of the views; () for vectors.
        augmentation: the strengths of the views: those of training.
        seed: seed of the views.
    """
    first, second = (
        inference_batches(
            images,
            size=size,
            batch_size=EVALUATION_BATCH,
            seed=seed,
            augmentation=augmentation,
            stream=EVALUATION_STREAM,
            pass_number=number,
        )
        for number in range(2)
    )
    return ViewPairs(first, second, len(images))


class Agreement(NamedTuple):
    """A measure of agreement: 1 for perfect agreement, 0 for that of chance."""

    value: float
    resampled: np.ndarray
    """Its values on resamples of the images, float64 [R]."""


class Stability(NamedTuple):
    """The stability of one network on held-out images."""

    view_agreement: Agreement
    """Adjusted mutual information of the clusters of two random views of each image, mean of the heads. A collapse gives 0."""
    neighbour_stability: Agreement
    """Share of the nearest training images that two views of an image have in common, corrected for the share of two different images."""
    neighbours_shared: float
    """The share of common neighbours of two views of an image, before the correction."""
    neighbours_by_chance: float
    """The share that views of two different images have in common."""


def measure_stability(passes: Passes, views: ViewPairs, bank: np.ndarray, *, seed: int) -> Stability:
    """Shows a network two random views of each held-out image and measures how much they have in common.

    Args:
        passes: the network.
        views: the views.
        bank: its embedding [N, D] of the clean views of training images, among which neighbours are searched.
        seed: seed of the resamples.
    """
    first, second = (passes.outputs(batches, views.num_images) for batches in views[:2])
    own, others = _shared_neighbours(*(nearest_images(bank, view.embedding, k=NEIGHBOURS) for view in (first, second)))
    return Stability(
        clusterings_agreement(first.clusters, second.clusters, seed=seed),
        _corrected(own, others, seed=seed),
        float(own.mean()),
        float(others.mean()),
    )


def heads_agreement(clusters: np.ndarray, *, seed: int) -> Agreement | None:
    """Returns the adjusted mutual information of each head's clusters with those of the next head, mean over the heads.

    Args:
        clusters: clusters of the same images, integers [T, M]; the last head is compared with the first.
        seed: seed of the resamples.

    Returns:
        The agreement; None for a single head.
    """
    return None if len(clusters) < 2 else clusterings_agreement(clusters, np.roll(clusters, 1, axis=0), seed=seed)


def clusterings_agreement(first: np.ndarray, second: np.ndarray, *, seed: int) -> Agreement:
    """Returns the adjusted mutual information of two clusterings of the same images, mean over the heads.

    Args:
        first: clusters, integers [T, M].
        second: clusters, integers [T, M].
        seed: seed of the resamples.
    """
    found = []
    for one, other in zip(first, second, strict=True):
        value = chance_corrected_agreement(one, other)
        found.append((value, ResampledTables(one, other, seed=seed).agreement("ami", ami=value)["ami"]))
    values, resampled = zip(*found, strict=True)
    return Agreement(float(np.mean(values)), np.mean(resampled, axis=0))


def _shared_neighbours(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of neighbours [M, k] that two views of each image have in common, and that of two different images, both [M]."""

    def shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a[:, :, np.newaxis] == b[:, np.newaxis]).any(axis=2).mean(axis=1)

    # Images that lie side by side are often of one class, so that each image is paired with one at random.
    order = np.random.default_rng(_PAIRING_KEY).permutation(len(first))
    others = np.empty_like(second)
    others[order] = second[np.roll(order, 1)]
    return shared(first, second), shared(first, others)


def _corrected(own: np.ndarray, others: np.ndarray, *, seed: int) -> Agreement:
    """Returns the mean share of common neighbours, corrected for that of different images: 0 where all images have the same neighbours."""

    def corrected(own: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.where(others < 1, (own - others) / np.maximum(1 - others, 1e-12), 0.0)

    resampled = resampled_means(np.stack([own, others]), seed=seed)
    return Agreement(float(corrected(own.mean(), others.mean())), corrected(resampled[:, 0], resampled[:, 1]))
