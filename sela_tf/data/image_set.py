"""An image set, which every source becomes: images somewhere in a store, and what is known of each."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.data.stores import Arrays, EncodedStore, Store

TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("test", "val", "valid", "validation", "eval")
"""The first that is there is taken."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """N images of one split, or vectors that stand for images."""

    name: str
    channels: int
    """1 for gray, 3 for colour; D of vectors, whose values are normalised one by one as channels are."""
    store: Store
    """The images themselves, or where they lie."""
    names: tuple[str, ...] | None = None
    """Of each image, unique: paths relative to the folder. Splits and later matches of labels go by them."""
    source_rows: np.ndarray | None = None
    """int64 [N], places in the set that these were taken from; None for all of it, in order."""
    classes: np.ndarray | None = None
    """int64 [N], for evaluation only."""
    class_names: tuple[str, ...] | None = None
    image_size: tuple[int, ...] | None = None
    """(height, width) where all images agree; () of vectors."""

    def __len__(self) -> int:
        return len(self.store)

    @property
    def rows(self) -> np.ndarray:
        """int64 [N], `source_rows` in any case."""
        return np.arange(len(self)) if self.source_rows is None else self.source_rows

    @property
    def is_vectors(self) -> bool:
        """Whether there are no pixels to be seen."""
        return self.image_size == ()

    @property
    def images(self) -> np.ndarray | None:
        """The images in memory, uint8 [N, H, W, C], or vectors float32 [N, D]; None where they are read as they are needed."""
        return self.store.pixels if isinstance(self.store, Arrays) else None

    @property
    def arrays(self) -> Arrays:
        """The store of images in memory.

        Raises:
            TypeError: they are not.
        """
        if not isinstance(self.store, Arrays):
            raise TypeError(f"the images of {self.name} are not in memory")
        return self.store

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        """The files of images int64 [B] that are not in memory: string [B]; runs in a graph.

        Raises:
            TypeError: there are no files.
        """
        if not isinstance(self.store, EncodedStore):
            raise TypeError(f"the images of {self.name} are no files")
        return self.store.encoded(indices)

    def take(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        return dataclasses.replace(
            self,
            store=self.store.take(indices),
            names=None if self.names is None else tuple(self.names[i] for i in indices),
            source_rows=self.rows[indices],
            classes=None if self.classes is None else self.classes[indices],
        )

    def fingerprint(self) -> str:
        """Changes when an image is added, removed, moved or changed (of a file: its name or its size; of a record, also its bytes)."""
        digest = hashlib.sha256(f"{len(self)} {self.channels}".encode())
        for part in self.store.digested(self.names or ()):
            digest.update(part)
        return digest.hexdigest()


class Splits(NamedTuple):
    """A source's images, and what it holds back for evaluation where it says so itself."""

    train: ImageSet
    eval: ImageSet | None
    report: tuple[str, ...] = ()
    """Lines about what was found and what was left out."""
