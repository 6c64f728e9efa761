"""The images that a person who cleans a set looks at first: duplicates, outliers, and images whose class or cluster is in doubt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from sela_tf.evaluation.duplicates import Duplicates, find_duplicates
from sela_tf.evaluation.knn import Neighbours, neighbours, without_themselves
from sela_tf.evaluation.picture_fit import smoothed_pictures, unit_pictures

REASONS = ("duplicate", "other_class", "outlier", "disagree", "low_margin")
"""The reasons to look at an image."""
_SIDE = 8
"""Side of the pictures whose pixels are compared, in pixels."""
_TEMPERATURE = 0.1
_MIXED_UP = 0.25
"""The weight of how often two classes are mixed up."""
_DOUBT = 0.1


class Ranking(NamedTuple):
    """An order of n images."""

    scores: np.ndarray
    """Scores float32 [n], the highest to be looked at first."""
    ranks: np.ndarray
    """Ranks int64 [n], each number from 1 (look first) to n once; of equal scores the lower row comes first."""


class Entry(NamedTuple):
    """A thing to look at: an image, or a group of duplicates."""

    image: int
    """Row of the image; of duplicates the first of the group."""
    reason: str
    """One of REASONS."""
    group: int = -1
    """Place in `Review.duplicates`; -1 of other reasons."""


class Review(NamedTuple):
    """The images to look at first among n."""

    duplicates: list[Duplicates]
    """Groups of images that are the same, the surest first."""
    rankings: dict[str, Ranking]
    """Orders of all images, by reason but for "duplicate"; "other_class" only with classes, "disagree" only with several heads."""
    first: list[Entry]
    """Duplicates, images of another class and outliers by turns, each image in one entry; all images are in it."""


def review(
    near: Neighbours,
    *,
    embedding: np.ndarray,
    thumbnails: np.ndarray | None,
    classes: np.ndarray | None,
    clusters: np.ndarray,
    margins: np.ndarray,
    disagreement: np.ndarray,
    held_out: np.ndarray,
) -> Review:
    """Finds the images to look at first among n.

    Images are compared in up to three ways: by the embedding, by small pictures (8 x 8 pixels) and by statistics of the pixels, such as
    brightness, contrast and sharpness. Vectors are compared by the embedding alone.

    Args:
        near: neighbours of each image by the embedding, see `knn.neighbours`.
        embedding: float [n, D].
        thumbnails: uint8 [n, h, w, c]; None for vectors.
        classes: integers [n] from 0; None where there are none.
        clusters: integers [n, T], cluster of each head.
        margins: float [n, T], margin of that cluster.
        disagreement: float [n], disagreement of the heads.
        held_out: bool [n], images that the network was not trained on.
    """
    views = [near]
    if thumbnails is not None:
        views += [
            neighbours(unit_pictures(smoothed_pictures(smoothed_pictures(thumbnails, 32), _SIDE))),
            _alike(_statistics(thumbnails)),
        ]
    compared = np.concatenate([view.nearest for view in views[:2]], axis=1)
    duplicates = find_duplicates(compared, embedding=embedding, thumbnails=thumbnails, held_out=held_out)
    scores = {}
    if classes is not None:
        votes = class_votes(views, classes, int(classes.max()) + 1)
        scores["other_class"] = other_class(votes, classes, mixed_up_classes(votes, classes))
    scores["outlier"] = np.sum([_beyond_usual(1.0 - view.similarity.mean(axis=1)) for view in views], axis=0)
    if clusters.shape[1] > 1:
        scores["disagree"] = disagreement
    scores["low_margin"] = 1.0 - margins.mean(axis=1)
    rankings = {reason: ranking(score) for reason, score in scores.items()}
    return Review(duplicates, rankings, list(_in_turn(duplicates, rankings)))


def ranking(scores: np.ndarray) -> Ranking:
    """Returns the order of images by scores [n], the highest first, of equal ones the lower row."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return Ranking(scores.astype(np.float32), ranks)


def _statistics(thumbnails: np.ndarray) -> np.ndarray:
    """Returns brightness, contrast, sharpness, border and saturation of each image, standardised, float32 [n, S]."""
    found = []
    for start in range(0, len(thumbnails), 1000):
        pixels = thumbnails[start : start + 1000].astype(np.float32) / 255.0
        count, height, width = pixels.shape[:3]
        gray = pixels.mean(axis=3)
        halved = gray[:, : height // 2 * 2, : width // 2 * 2].reshape(count, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
        slopes = [np.abs(np.diff(each, axis=axis)).mean(axis=(1, 2)) for each in (gray, halved) for axis in (1, 2)]
        sharpness = np.log((slopes[0] + slopes[1] + 0.01) / (slopes[2] + slopes[3] + 0.01))
        border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
        parts = [pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2)), border.mean(axis=1), border.std(axis=1)]
        saturation = pixels.max(axis=3) - pixels.min(axis=3)
        ones = [slopes[0], slopes[1], sharpness, saturation.mean(axis=(1, 2)), saturation.std(axis=(1, 2))]
        found.append(np.concatenate([*parts, np.stack(ones, axis=1)], axis=1))
    values = np.concatenate(found)
    return (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)


def _alike(points: np.ndarray) -> Neighbours:
    """Returns the 10 nearest points of each of `points` [n, S] by the Euclidean distance; the similarity is minus a fifth of it."""
    distances, rows = cKDTree(points).query(points, k=min(11, len(points)))
    similarity = -0.2 * distances.reshape(len(points), -1).astype(np.float32)
    return without_themselves(Neighbours(rows.reshape(len(points), -1), similarity), np.arange(len(points)))


def _beyond_usual(distances: np.ndarray) -> np.ndarray:
    """Returns distances [n] less their median, in units of what the 90th percentile is above it."""
    median, high = np.quantile(distances, [0.5, 0.9])
    return (distances - median) / (high - median + 1e-6)


def class_votes(views: Sequence[Neighbours], classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the share of votes that the neighbours of each of M images give to each class, float [M, C], mean over `views`.

    Args:
        views: neighbours of the M images, by several measures.
        classes: integers [n] from 0, the classes of the images that neighbours are among.
        num_classes: number of classes C.
    """
    images = np.arange(len(views[0].nearest))[:, np.newaxis]
    votes = np.zeros((len(images), num_classes))
    for view in views:
        weights = np.exp((view.similarity - view.similarity[:, :1]) / _TEMPERATURE)
        np.add.at(votes, (images, classes[view.nearest]), weights / weights.sum(axis=1, keepdims=True) / len(views))
    return votes


def mixed_up_classes(votes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns the mean votes of the images of each class, float [C, C], from votes [M, C] and classes [M]."""
    sums = np.zeros((votes.shape[1], votes.shape[1]))
    np.add.at(sums, classes, votes)
    return sums / np.maximum(np.bincount(classes, minlength=len(sums)), 1)[:, np.newaxis]


def other_class(votes: np.ndarray, classes: np.ndarray, mixed_up: np.ndarray) -> np.ndarray:
    """Returns how much the votes speak for one other class against the image's own, float [M].

    The score is the logarithm of the ratio of the two shares, less a quarter of the logarithm of the share of votes that images of the own
    class give to the other class: where two classes are mixed up often, a wrong neighbour says little.

    Args:
        votes: float [M, C], see `class_votes`.
        classes: integers [M], the images' own classes.
        mixed_up: float [C, C], see `mixed_up_classes`.
    """
    images = np.arange(len(classes))
    own, others = votes[images, classes], votes.copy()
    others[images, classes] = 0.0
    other = others.argmax(axis=1)
    return np.log((others[images, other] + _DOUBT) / (own + _DOUBT)) - _MIXED_UP * np.log(mixed_up[classes, other] + 1e-3)


def _in_turn(duplicates: list[Duplicates], rankings: dict[str, Ranking]) -> Iterator[Entry]:
    """Yields the next entry of each reason by turns, each image once.

    The disagreement of heads and the margin take no turns: they hardly tell faults from other images.
    """
    queues = [iter([Entry(group.images[0], "duplicate", number) for number, group in enumerate(duplicates)])]
    for reason in ("other_class", "outlier"):
        if reason in rankings:
            queues.append(map(Entry, np.argsort(rankings[reason].ranks).tolist(), itertools.repeat(reason)))
    seen: set[int] = set()
    while queues:
        for queue in list(queues):
            entry = next((entry for entry in queue if entry.image not in seen), None)
            if entry is None:
                queues.remove(queue)
                continue
            seen.update(duplicates[entry.group].images if entry.group >= 0 else (entry.image,))
            yield entry
