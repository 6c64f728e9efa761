"""Image sets: the images of a source, the store that holds them, and their names, classes and size."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.data.left_out import ImageNote
from sela_tf.data.pixel_rules import DEFAULT_RULES, PixelRules
from sela_tf.data.stores import Arrays, DecodedFiles, EncodedStore, Files, Store

TRAIN_NAMES = ("train", "training")
"""Names of splits to train on. The first one that a source has is taken."""
EVAL_NAMES = ("test", "val", "valid", "validation", "eval")
"""Names of splits to evaluate on. The first one that a source has is taken."""


class SourceName(NamedTuple):
    """The name of a source, and the setting that gave it; `str()` gives the form for messages."""

    name: str
    """The data set as it was asked for, such as "digits" or "folder:/images"."""
    setting: str = ""
    """The setting, "dataset" or "eval_dataset"; "" for a set that no setting names."""

    def __str__(self) -> str:
        return f"`{self.setting}={self.name}`" if self.setting else self.name


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """N images of one split, or N vectors that stand for images."""

    name: str
    """The name of the source, such as "digits" or "folder:/images"."""
    setting: str = ""
    """The setting that named the source, "dataset" or "eval_dataset"; "" if none did."""
    channels: int
    """Channels of the images: 1 (gray) or 3 (RGB); for vectors their length D, because each value is normalised as a channel is."""
    store: Store
    """The images in memory, or the places to read them from."""
    names: tuple[str, ...] | None = None
    """N unique names, such as paths relative to the folder; None if the images have none. Splits and labels are matched by name."""
    source_rows: np.ndarray | None = None
    """Places of the images in the set that they were taken from, int64 `[N]`; None for the whole set in order."""
    classes: np.ndarray | None = None
    """Class labels, int64 `[N]`, used by evaluation only; None if they are not known."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, by number; None if they have none."""
    rules: PixelRules = DEFAULT_RULES
    """The rules by which image files become pixels; images in memory are pixels already."""
    image_size: tuple[int, ...] | None = None
    """(height, width) in pixels if all images have the same size, else None; () for vectors."""
    median_side: int = 0
    """The median of the images' shorter sides in pixels where they have several sizes; 0 if it is not known."""

    def __len__(self) -> int:
        return len(self.store)

    @property
    def full_name(self) -> str:
        """The name for messages, with its setting: "`dataset=digits`"."""
        return str(SourceName(self.name, self.setting))

    @property
    def rows(self) -> np.ndarray:
        """Places of the images in the set that they were taken from, int64 `[N]`."""
        return np.arange(len(self)) if self.source_rows is None else self.source_rows

    @property
    def is_vectors(self) -> bool:
        """True for vectors, False for images."""
        return self.image_size == ()

    @property
    def images(self) -> np.ndarray | None:
        """Images in memory, uint8 `[N, H, W, C]`, or vectors, float32 `[N, D]`; None if they are read when they are needed."""
        return self.store.pixels if isinstance(self.store, Arrays) else None

    @property
    def arrays(self) -> Arrays:
        """The store of a set in memory.

        Raises:
            TypeError: The images are not in memory.
        """
        if not isinstance(self.store, Arrays):
            raise TypeError(f"the images of {self.full_name} are not in memory")
        return self.store

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads the files of images that are not in memory; runs in a graph.

        Args:
            indices: Places in this set, int64 `[B]`.

        Returns:
            Contents of the image files, string `[B]`.

        Raises:
            TypeError: The images are not files.
        """
        if not isinstance(self.store, EncodedStore):
            raise TypeError(f"the images of {self.full_name} are no files")
        return self.store.encoded(indices)

    def take(self, indices: np.ndarray) -> ImageSet:
        """Returns the set of the images at `indices`, in that order."""
        return dataclasses.replace(
            self,
            store=self.store.take(indices),
            names=None if self.names is None else tuple(self.names[i] for i in indices),
            source_rows=self.rows[indices],
            classes=None if self.classes is None else self.classes[indices],
        )

    def fingerprint(self) -> str:
        """Returns a SHA-256 digest of the names and the content of the images, 64 hexadecimal digits.

        It changes when an image is added, removed, moved or changed. The content is the bytes of a file, an array or a record. Classes do
        not count.

        Raises:
            ValueError: The images have not been read.
        """
        return self._digest(self.store.digested(self.names or ()))

    def matches(self, fingerprint: str, *, tell: Callable[[str], None] | None = None) -> bool:
        """Returns True if a fingerprint is of this set.

        Args:
            fingerprint: The fingerprint of a set. That of an older run is made of the names and sizes of files, and is compared so.
            tell: A function that gets a line if the fingerprint is such an older one.

        Raises:
            ValueError: The images have not been read.
        """
        if fingerprint == self.fingerprint():
            return True
        files = self.store.files if isinstance(self.store, DecodedFiles) else self.store
        if not isinstance(files, Files) or fingerprint != self._digest(files.sized(self.names or ())):
            return False
        if tell is not None:
            tell(
                f"{self.full_name}: the run is older and knows names and sizes of its images only, so other changes would not be seen"
            )
        return True

    def _digest(self, parts: Iterable[bytes | memoryview]) -> str:
        digest = hashlib.sha256(f"{len(self)} {self.channels}".encode())
        for part in parts:
            digest.update(part)
        return digest.hexdigest()


class Splits(NamedTuple):
    """The images of a source, and the split that it holds out for evaluation itself, if it has one."""

    train: ImageSet
    """Images to train on."""
    eval: ImageSet | None
    """Images to evaluate on; None if the source has no such split."""
    report: tuple[str, ...] = ()
    """Lines for the user about the images that were found and those that were left out."""
    rejected: tuple[ImageNote, ...] = ()
    """Images that were left out because they cannot be read."""
    without_classes: str = ""
    """The reason why the images have no classes, if one is known."""
