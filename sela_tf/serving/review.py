"""Scores that say which images a person who cleans a data set should look at first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from scipy import sparse

from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import match_names


class ReviewScores:
    """Scores of images by what the labels of a finished run say of them.

    Args:
        labels: integers [T, N], labels of the images that the run was trained on.
        num_changes: integers [T, N], relabellings that changed the label.
        num_relabellings: integers [T], relabellings of the run.
        num_clusters: number of clusters K.
    """

    def __init__(self, labels: np.ndarray, num_changes: np.ndarray, num_relabellings: np.ndarray, *, num_clusters: int):
        # The first relabelling replaces random labels, which does not count as a change.
        self._most_changes = max(1, int((num_relabellings - 1).sum()))
        self._mean_changes = float(num_changes.sum(axis=0).mean())
        sizes = [np.bincount(head, minlength=num_clusters) for head in labels]
        ones = np.ones(labels.shape[1], np.int32)
        self._pairs = []
        for a, b in itertools.combinations(range(len(labels)), 2):
            both = sparse.coo_array((ones, (labels[a], labels[b])), shape=(num_clusters, num_clusters)).tocsr()
            self._pairs.append((a, b, both, sizes[a], sizes[b]))

    def disagreement(self, clusters: np.ndarray) -> np.ndarray:
        """Returns how far the heads disagree on each image, float32 [B] in [0, 1]; 0 for a single head.

        The disagreement of two heads is one minus the Jaccard index of the members of the image's two clusters. The result is the mean
        over pairs of heads.

        Args:
            clusters: integers [B, T], each head's cluster of the images.
        """
        total = np.zeros(len(clusters))
        for a, b, both, size_a, size_b in self._pairs:
            first, second = clusters[:, a], clusters[:, b]
            shared = np.asarray(both[first, second]).reshape(-1)
            total += 1.0 - shared / np.maximum(size_a[first] + size_b[second] - shared, 1)
        return (total / max(1, len(self._pairs))).astype(np.float32)

    def look_here_first(self, margins: np.ndarray, disagreement: np.ndarray, num_changes: np.ndarray) -> np.ndarray:
        """Returns the urgency of a review, float32 [B] in [0, 1], the highest first.

        It is the mean of one minus the margin, of the share of relabellings that changed the label and, with several heads, of their
        disagreement.

        Args:
            margins: margins [B, T] of the predictions.
            disagreement: disagreement [B] of the heads; ignored where there is one head.
            num_changes: changes [B] of the label, over all heads; NaN where it is not known. NaN counts as the mean over the training
                images, so that scores of training images and others can be compared.
        """
        changes = np.where(np.isnan(num_changes), self._mean_changes, num_changes) / self._most_changes
        parts = [1.0 - np.clip(margins.mean(axis=1), 0.0, 1.0), changes]
        if self._pairs:
            parts.append(disagreement)
        return np.mean(parts, axis=0).astype(np.float32)


def known_changes(images: ImageSet, labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns how often each image's label changed while the run was trained on it, float32 [N], summed over heads.

    The changes are known if `images` hold all images that the run was trained on, by their names or source rows, and if these are
    unchanged by their fingerprint. All other images, or all images, get NaN.

    Args:
        images: N images.
        labels: arrays of the run's labels.npz.
    """
    if images.names is not None and "names" in labels:
        names = labels["names"].tolist()
        trained = np.array(match_names(names, images.names))
    else:
        names = None
        places = {row: place for place, row in enumerate(images.rows.tolist())}
        trained = np.array([places.get(row, -1) for row in labels["source_rows"].tolist()])
    found = np.full(len(images), np.nan, np.float32)
    if trained.min() < 0:
        return found
    same = images.take(trained)
    if names is not None:
        # The fingerprint is of the names as the run had them, which may be in another Unicode form.
        same = dataclasses.replace(same, names=tuple(names))
    if same.fingerprint() == str(labels["data_fingerprint"]):
        found[trained] = labels["num_changes"].sum(axis=0)
    return found
