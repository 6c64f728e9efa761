"""A test of images: can a mirrored one be told from one as it is? Where it can, no image ever looks like its mirrored view."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from sklearn.neighbors import KNeighborsClassifier

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches

_SIDE = 16
_NEIGHBOURS = 5


def mirror_accuracy(images: ImageSet, *, size: tuple[int, int], seed: int = 0, at_most: int = 4000) -> float:
    """Returns the accuracy of a kNN classifier of pixels (16 x 16) that tells whether an image is mirrored; 0.5 is chance.

    Half of the images, each as it is and mirrored, are what the others, of which half are mirrored, are compared with.

    Args:
        images: the images.
        size: (height, width) of the clean views.
        seed: the seed of the choice of images.
        at_most: the most images that are read.
    """
    random = np.random.default_rng(seed)
    images = images.take(random.permutation(len(images))[:at_most])
    side = [min(_SIDE, each) for each in size]
    batches = inference_batches(images, size=size, batch_size=EVALUATION_BATCH, in_order=True)
    views = np.concatenate([tf.image.resize(batch, side, method="area").numpy() for batch, _ in batches])
    half = len(views) // 2
    known, asked = views[:half], views[half:]
    if len(known) < _NEIGHBOURS:
        return 0.5
    is_mirrored = np.arange(len(asked)) % 2 == 0
    asked = np.where(is_mirrored[:, np.newaxis, np.newaxis, np.newaxis], asked[:, :, ::-1], asked)
    bank = np.concatenate([known, known[:, :, ::-1]]).reshape(2 * half, -1)
    classifier = KNeighborsClassifier(_NEIGHBOURS, algorithm="brute").fit(bank, np.repeat([False, True], half))
    return float(classifier.score(asked.reshape(len(asked), -1), is_mirrored))
