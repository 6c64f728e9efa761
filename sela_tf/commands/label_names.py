"""The names that `python -m sela_tf.label` writes beside clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import find_images
from sela_tf.runs.cluster_names import names_to_use


class LabelNames(NamedTuple):
    """The names of clusters, and of images that were named one by one."""

    clusters: np.ndarray
    """The names of clusters, text [T, K], empty where there is none."""
    images: dict[str, str]
    """The names of images by source; an empty one says that the image does not belong where it is."""

    def column(self, head: int, clusters: np.ndarray, said: Mapping[int, str], start: int) -> np.ndarray:
        """Returns the names to write for B consecutive images of a split, text [B].

        Args:
            head: the head.
            clusters: its clusters of the images, integers [B].
            said: the names of the split's images that were named one by one, by place.
            start: the place of the first of the images.
        """
        of_clusters = self.clusters[head, clusters].tolist()
        return np.array([said.get(start + i, name) for i, name in enumerate(of_clusters)], np.str_)

    def of_images(self, images: ImageSet, *, is_first: bool, are_of_run: bool) -> dict[int, str]:
        """Returns the names of the images that were named one by one, by place.

        Args:
            images: the images of a split.
            is_first: True for the first split, whose rows are those of the source. Other splits without names may have rows of their own.
            are_of_run: True for the images of the run itself. Rows of another source say nothing of those in the file.
        """
        by_name = images.names is not None
        if not by_name and (not are_of_run or (not is_first and images.source_rows is None)):
            return {}
        places, _ = find_images([*self.images], images, by_name=by_name)
        return {place: name for place, name in zip(places, self.images.values(), strict=True) if place >= 0}


def names_to_write(path: str, labels: Mapping[str, np.ndarray], num_heads: int, num_clusters: int) -> LabelNames | None:
    """Returns the names of the file `path`, or of the run where it is empty; None where there are none.

    Args:
        path: the file of the setting `names`.
        labels: arrays of the run's labels.npz.
        num_heads: the number of heads T.
        num_clusters: the number of clusters K of each head.

    Raises:
        SourceError: the file is malformed.
    """
    names = names_to_use(path, labels, num_heads, num_clusters)
    return LabelNames(names.of_clusters(num_heads, num_clusters), names.images) if any(names) else None
