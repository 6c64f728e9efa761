"""Stores of images: in memory or in files (`sela_tf.data.records` has TFRecord shards). A store knows its images by their places only."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import tensorflow as tf


class Store(Protocol):
    """N images in a fixed order."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Store:
        """Returns the store of the images at `indices`, in that order."""

    def digested(self, names: Sequence[str]) -> Iterator[bytes | memoryview]:
        """Yields the bytes that stand for the images in a fingerprint; their order counts.

        Args:
            names: N names, or none.
        """

    def checksums(self) -> np.ndarray:
        """Returns a checksum of the content of each image, uint64 `[N]`, by which it is told which images changed."""


@runtime_checkable
class EncodedStore(Store, Protocol):
    """Images that are read and decoded when they are needed."""

    @property
    def largest(self) -> np.ndarray | None:
        """The largest value of each file of 16 bits, 0 for any other, integers `[N]`; None if it is not known."""

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the contents of the image files at `indices` (int64 `[B]`) as string `[B]`; runs in a graph."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory, or vectors that stand for them."""

    pixels: np.ndarray
    """Images, uint8 `[N, H, W, C]`, or vectors, float32 `[N, D]`."""

    def __len__(self) -> int:
        return len(self.pixels)

    @functools.cached_property
    def tensor(self) -> tf.Tensor:
        """`pixels` as a tensor on the CPU. It is made once; every pass over the set reads it."""
        with tf.device("CPU"):
            return tf.constant(self.pixels)

    @functools.cached_property
    def moments(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and standard deviation of each value of the vectors over the set, two float32 `[D]`."""
        return tf.math.reduce_mean(self.tensor, axis=0), tf.math.reduce_std(self.tensor, axis=0)

    def take(self, indices: np.ndarray) -> Arrays:
        return Arrays(self.pixels[indices])

    def digested(self, names: Sequence[str]) -> Iterator[bytes | memoryview]:
        """Yields the shape and all values. Names do not count."""
        yield str(self.pixels.shape).encode()
        yield np.ascontiguousarray(self.pixels).data

    def checksums(self) -> np.ndarray:
        rows = (hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=8).digest() for row in self.pixels)
        return np.frombuffer(b"".join(rows), "<u8").astype(np.uint64)


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files on any file system that TensorFlow knows."""

    paths: tuple[str, ...]
    """N paths or URLs."""
    largest: np.ndarray | None = None
    """The largest value of each file of 16 bits, 0 for any other, integers `[N]`; None if it is not known."""
    sizes: np.ndarray | None = None
    """(height, width) of each upright image, integers `[N, 2]`; None if they are not known."""
    digests: tuple[str, ...] | None = None
    """The SHA-256 digest of each file; None if they are not known."""

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: np.ndarray) -> Files:
        return Files(
            tuple(self.paths[i] for i in indices),
            None if self.largest is None else self.largest[indices],
            None if self.sizes is None else self.sizes[indices],
            None if self.digests is None else tuple(self.digests[i] for i in indices),
        )

    def digested(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yields the name and the digest of each file.

        Raises:
            ValueError: The files have not been read to their end.
        """
        for name, digest in zip(names, self._known_digests, strict=True):
            yield f"{name}\0{digest}\0".encode()

    def sized(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yields the name and the size of each file, as `digested` once did: fingerprints of older runs are made of these."""
        for name, path in zip(names, self.paths, strict=True):
            yield f"{name}\0{_size(path)}\0".encode()

    def checksums(self) -> np.ndarray:
        """Returns the first eight bytes of the digests, uint64 `[N]`."""
        return np.frombuffer(bytes.fromhex("".join(digest[:16] for digest in self._known_digests)), "<u8").astype(np.uint64)

    @property
    def _known_digests(self) -> tuple[str, ...]:
        # Files of which only the headers were read have empty digests.
        if self.digests is None or "" in self.digests:
            raise ValueError(f"{len(self)} files were listed and not read: load them to have a fingerprint")
        return self.digests

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        READ_IN_GRAPHS.add(self)
        return tf.map_fn(tf.io.read_file, tf.gather(self._tensor, indices))

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        # The tensor is first asked for inside a graph and must outlive it.
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self.paths)


READ_IN_GRAPHS: weakref.WeakSet[Files] = weakref.WeakSet()
"""The stores that graphs of this process read: an error inside a graph does not always say of which file it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedFiles:
    """Image files whose pixels are in memory, one image after the other. A fingerprint is that of the files."""

    files: Files
    """The N files."""
    pixels: tf.Tensor
    """The pixels of all images, uint8 `[P]`."""
    starts: np.ndarray
    """The place of each image's first pixel, int64 `[N]`."""
    shapes: np.ndarray
    """The shape (h, w, C) of each image, int64 `[N, 3]`."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def largest(self) -> np.ndarray | None:
        """The largest values of the files, see `Files`."""
        return self.files.largest

    def take(self, indices: np.ndarray) -> DecodedFiles:
        return DecodedFiles(self.files.take(indices), self.pixels, self.starts[indices], self.shapes[indices])

    def digested(self, names: Sequence[str]) -> Iterator[bytes]:
        return self.files.digested(names)

    def checksums(self) -> np.ndarray:
        return self.files.checksums()

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        return self.files.encoded(indices)

    def image(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the pixels uint8 `[h, w, C]` of the image at `index`, a scalar; runs in a graph."""
        starts, shapes = self._tensors
        shape = shapes[index]
        return tf.reshape(tf.slice(self.pixels, [starts[index]], [tf.reduce_prod(shape)]), shape)

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """`starts` and `shapes`; they are first asked for inside a graph and must outlive it."""
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self.starts), tf.constant(self.shapes)


@dataclasses.dataclass(frozen=True)
class Unread:
    """Images of which only the number is known yet. Settings can be checked against it; nothing can be trained on it."""

    count: int
    """The number of images N."""

    def __len__(self) -> int:
        return self.count

    def take(self, indices: np.ndarray) -> Unread:
        return Unread(len(indices))

    def digested(self, names: Sequence[str]) -> Iterator[bytes]:
        raise self._unread

    def checksums(self) -> np.ndarray:
        raise self._unread

    @property
    def _unread(self) -> ValueError:
        return ValueError(f"{self.count} images were counted and not read: load them to have a fingerprint")


def _size(path: str) -> int:
    """Returns the size of a file in bytes."""
    # For local files the operating system answers several times faster than TensorFlow.
    return tf.io.gfile.stat(path).length if "://" in path else os.path.getsize(path)
