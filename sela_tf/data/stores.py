"""The stores of images: in memory, in files, or (records.py) in TFRecord shards; each knows its images by their places alone."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import tensorflow as tf


class Store(Protocol):
    """N images in an order."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Store:
        """The images at `indices`, in that order."""

    def digested(self, names: Sequence[str]) -> Iterator[bytes | memoryview]:
        """The bytes that stand for the images in a fingerprint, in which the order counts.

        Args:
            names: N of them, or none.
        """


@runtime_checkable
class EncodedStore(Store, Protocol):
    """Images that are read and decoded as they are needed."""

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        """The image files at int64 [B]: string [B]; runs in a graph."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Images, or vectors that stand for them, in memory."""

    pixels: np.ndarray
    """uint8 [N, H, W, C]; of vectors float32 [N, D]."""

    def __len__(self) -> int:
        return len(self.pixels)

    @functools.cached_property
    def tensor(self) -> tf.Tensor:
        """`pixels` on the CPU, made once: every pass over the set reads this one."""
        with tf.device("CPU"):
            return tf.constant(self.pixels)

    @functools.cached_property
    def moments(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and standard deviation of each value of vectors: two float32 [D]."""
        return tf.math.reduce_mean(self.tensor, axis=0), tf.math.reduce_std(self.tensor, axis=0)

    def take(self, indices: np.ndarray) -> Arrays:
        return Arrays(self.pixels[indices])

    def digested(self, names: Sequence[str]) -> Iterator[bytes | memoryview]:
        """The shape and all values, whatever the names."""
        yield str(self.pixels.shape).encode()
        yield np.ascontiguousarray(self.pixels).data


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files, of any file system that TensorFlow knows."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: np.ndarray) -> Files:
        return Files(tuple(self.paths[i] for i in indices))

    def digested(self, names: Sequence[str]) -> Iterator[bytes]:
        """Names and sizes."""
        for name, path in zip(names, self.paths, strict=True):
            yield f"{name}\0{_size(path)}\0".encode()

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(tf.io.read_file, tf.gather(self._tensor, indices))

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        # it is first asked for in a graph, and is to outlive it
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self.paths)


@dataclasses.dataclass(frozen=True)
class Unread:
    """Images of which only the number is known yet: settings can be held to it, nothing can be trained on it."""

    count: int

    def __len__(self) -> int:
        return self.count

    def take(self, indices: np.ndarray) -> Unread:
        return Unread(len(indices))

    def digested(self, names: Sequence[str]) -> Iterator[bytes]:
        raise ValueError(f"{self.count} images were counted and not read: load them to have a fingerprint")


def _size(path: str) -> int:
    """Bytes of a file."""
    # for local files the operating system answers several times faster
    return tf.io.gfile.stat(path).length if "://" in path else os.path.getsize(path)
