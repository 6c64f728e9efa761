"""The images that a page shows, with what the network says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ShownImages(NamedTuple):
    """The n images of a page, and the labels and outputs of the network for them."""

    sources: Sequence[str]
    """File name below the folder or, where images have none, the row in the source."""
    held_out: np.ndarray
    """True for held-out images, bool [n]."""
    clusters: np.ndarray
    """Cluster under each head, integers [T, n]: labels of the last transport, or what the network says of held-out images."""
    margins: np.ndarray
    """Probability of that cluster less that of the best other one, float [T, n], from -1 to 1."""
    embedding: np.ndarray
    """Embedding float32 [n, D]."""
    disagreement: np.ndarray
    """Disagreement of the heads, float [n] in [0, 1]; 0 for one head."""
    nearest: np.ndarray
    """Nearest images by the cosine of the embedding, integers [n, k], the nearest first, the image itself left out."""
    can_mark: np.ndarray
    """True for images that their source tells from all others, so that they can be marked, bool [n]."""
    classes: np.ndarray | None = None
    """Classes, integers [n]; None where they are not known."""
    thumbnails: np.ndarray | None = None
    """Pictures uint8 [n, h, w, 1 or 3]; None where there are none."""

    def take(self, order: np.ndarray) -> ShownImages:
        """Returns the same images in another order; `order` is a permutation [n] of their present places."""
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return ShownImages(
            [self.sources[i] for i in order],
            self.held_out[order],
            self.clusters[:, order],
            self.margins[:, order],
            self.embedding[order],
            self.disagreement[order],
            places[self.nearest[order]],
            self.can_mark[order],
            None if self.classes is None else self.classes[order],
            None if self.thumbnails is None else self.thumbnails[order],
        )
