"""The urgency of looking at an image. It is computed from a sample of the images, so that they can come one block after another."""

from __future__ import annotations

import numpy as np

from sela_tf.evaluation.knn import Neighbours, nearest_in, without_themselves
from sela_tf.evaluation.review import class_votes, mixed_up_classes, other_class

_NEIGHBOURS = 10
SAMPLE = 4096
"""Images that others are compared with: more would cost time and change ranks little."""


class Urgency:
    """A rank of images as a share: 1 for those to look at first, 0 for the last, evenly spread over the images of the sample.

    An image ranks high if it is far from its nearest neighbours in the sample, or if these are of another class. Each is a rank of
    its own; the higher one counts.

    Args:
        embedding: float [n, D], the embeddings of a sample of the images.
        classes: integers [n] from 0; None where there are none.
        places: integers [n], increasing: the places of the sample among all images.
    """

    def __init__(self, embedding: np.ndarray, classes: np.ndarray | None, places: np.ndarray):
        self._embedding, self._classes, self._places = embedding, classes, places
        near = self._near(embedding, places)
        if classes is not None:
            self._num_classes = int(classes.max()) + 1
            self._mixed_up = mixed_up_classes(class_votes([near], classes, self._num_classes), classes)
        parts = self._parts(near, classes)
        self._sorted_parts = [np.sort(part) for part in parts]
        self._sorted = np.sort(self._highest(parts))

    def look_here_first(self, embedding: np.ndarray, classes: np.ndarray | None, places: np.ndarray) -> np.ndarray:
        """Returns the urgency of B images, float32 [B] in [0, 1].

        Args:
            embedding: float [B, D].
            classes: integers [B], numbered as those of the sample; None where the sample has none.
            places: integers [B], places of the images among all images. An image is not its own neighbour.
        """
        highest = self._highest(self._parts(self._near(embedding, places), classes))
        return _share(highest, self._sorted).astype(np.float32)

    def _near(self, embedding: np.ndarray, places: np.ndarray) -> Neighbours:
        """Returns the neighbours in the sample, without the images themselves."""
        found = nearest_in(self._embedding, embedding, k=_NEIGHBOURS + 1)
        rows = np.searchsorted(self._places, places)
        return without_themselves(found, np.where(np.isin(places, self._places), rows, -1))

    def _parts(self, near: Neighbours, classes: np.ndarray | None) -> list[np.ndarray]:
        # A single image has no neighbours.
        parts = [1.0 - near.similarity.sum(axis=1) / max(1, near.similarity.shape[1])]
        if self._classes is not None and classes is not None:
            # A class that the sample lacks has no votes, and is mixed up with none.
            votes = class_votes([near], self._classes, max(self._num_classes, int(classes.max(initial=0)) + 1))
            wider = np.pad(self._mixed_up, [(0, votes.shape[1] - self._num_classes)] * 2)
            parts.append(other_class(votes, classes, wider))
        return parts

    def _highest(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.max([_share(part, ordered) for part, ordered in zip(parts, self._sorted_parts, strict=True)], axis=0)


def sample_places(num_images: int) -> np.ndarray:
    """Returns the places of at most SAMPLE images, evenly spaced, int64 [n]."""
    return np.unique(np.linspace(0, num_images - 1, min(SAMPLE, num_images)).astype(np.int64))


def _share(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Returns the share of the values `ordered` [n] that are below each of `values`, in [0, 1]; of equal ones half."""
    below, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.clip((below + up_to - 1) / (2 * max(1, len(ordered) - 1)), 0.0, 1.0)
