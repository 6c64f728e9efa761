"""What every source becomes: arrays in memory, files by path, or records by their place."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from sela_tf.data.records import Records

TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("test", "val", "valid", "validation", "eval")
"""The first that is there is taken."""


class SourceError(ValueError):
    """A data set that cannot be used as it is; the message names it and the way out."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """N images of one split, or vectors that stand for images. Exactly one of `images`, `paths` and `records` is given."""

    name: str
    channels: int
    """1 for gray, 3 for colour; D of vectors, whose values are normalised one by one as channels are."""
    images: np.ndarray | None = None
    """uint8 [N, H, W, C]; of vectors float32 [N, D]."""
    paths: tuple[str, ...] | None = None
    records: Records | None = None
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
        return len(self.images) if self.images is not None else len(self.records or self.paths or ())

    @property
    def rows(self) -> np.ndarray:
        """int64 [N], `source_rows` in any case."""
        return np.arange(len(self)) if self.source_rows is None else self.source_rows

    @property
    def is_vectors(self) -> bool:
        """Whether there are no pixels to be seen."""
        return self.image_size == ()

    @functools.cached_property
    def tensor(self) -> tf.Tensor:
        """`images` as a tensor on the CPU, made once: every pass over the set reads this one."""
        with tf.device("CPU"):
            return tf.constant(self.images)

    @functools.cached_property
    def moments(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and standard deviation of each value of vectors: two float32 [D]."""
        return tf.math.reduce_mean(self.tensor, axis=0), tf.math.reduce_std(self.tensor, axis=0)

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        """The files of images int64 [B] that are not in memory: string [B]; runs in a graph."""
        if self.records is not None:
            return self.records.encoded(indices)
        return tf.map_fn(tf.io.read_file, tf.gather(self._paths, indices))

    @functools.cached_property
    def _paths(self) -> tf.Tensor:
        # it is first asked for in a graph, and is to outlive it
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self.paths)

    def take(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""

        def pick(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[i] for i in indices)

        return dataclasses.replace(
            self,
            images=None if self.images is None else self.images[indices],
            paths=pick(self.paths),
            records=None if self.records is None else self.records.take(indices),
            names=pick(self.names),
            source_rows=self.rows[indices],
            classes=None if self.classes is None else self.classes[indices],
        )

    def fingerprint(self) -> str:
        """Changes when an image is added, removed, moved or changed (of a file: its name or its size; of a record, also its bytes)."""
        digest = hashlib.sha256(f"{len(self)} {self.channels}".encode())
        if self.images is not None:
            digest.update(str(self.images.shape).encode())
            digest.update(np.ascontiguousarray(self.images).data)
        elif self.records is not None:
            for name, checksum in zip(self.names or (), self.records.content_crc32, strict=True):
                digest.update(f"{name}\0{checksum}\0".encode())
        else:
            for name, path in zip(self.names or (), self.paths or (), strict=True):
                digest.update(f"{name}\0{os.path.getsize(path)}\0".encode())
        return digest.hexdigest()


class Splits(NamedTuple):
    """A source's images, and what it holds back for evaluation where it says so itself."""

    train: ImageSet
    eval: ImageSet | None
    report: tuple[str, ...] = ()
    """Lines about what was found and what was left out."""
