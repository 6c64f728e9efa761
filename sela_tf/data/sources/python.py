"""The source of images that a Python program hands over: arrays, or a finite tf.data.Dataset, kept in memory while they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from sela_tf.data.classes import class_labels
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import SourceName, Splits
from sela_tf.data.sources.arrays import array_set, check_memory
from sela_tf.data.sources.vectors import vector_set

ImagesFromPython: TypeAlias = np.ndarray | tuple[np.ndarray, np.ndarray] | tf.data.Dataset
"""Images uint8 `[N, H, W]` or `[N, H, W, C]`, or vectors `[N, D]`; a pair of these and class labels `[N]`; or a finite tf.data.Dataset of
images, or of pairs of an image and its class label, in batches or not."""

_KIND = "python"
_given: dict[str, Splits] = {}


@contextlib.contextmanager
def images_given(data: ImagesFromPython, *, memory_limit: int, tell: Callable[[str], None]) -> Iterator[str]:
    """Makes images known to `load_source` for as long as the context lasts.

    Args:
        data: Images, or vectors, with class labels or without.
        memory_limit: Bytes that they may take.
        tell: A function that is called with lines about what was changed.

    Yields:
        The name of the data set, python:FINGERPRINT. The same images have the same name.

    Raises:
        SourceError: The data are of another kind, infinite or too large.
    """
    images, classes = _arrays(data, memory_limit)
    source = SourceName("images given from Python")
    labels = None if classes is None else class_labels(classes, len(np.atleast_1d(images)), key="classes", source=str(source))
    if images.ndim == 2 and images.dtype.kind in "fiu" and images.dtype != np.uint8:
        found = vector_set(source, "the array", images, labels, memory_limit)
    else:
        check_memory(str(source), images.size, memory_limit)
        found = array_set(source, _as_pixels(images, tell), labels)
    name = f"{_KIND}:{found.fingerprint()[:16]}"
    _given[name] = Splits(found, None)
    try:
        yield name
    finally:
        _given.pop(name, None)


def load_given(source: SourceName) -> Splits:
    """Returns the images that are known by this name.

    Raises:
        SourceError: The program that handed them over has ended, or is done with them.
    """
    found = _given.get(source.name)
    if found is None:
        raise SourceError(
            f"{source}: these images were handed over by a Python program, and are not on the disk: give `dataset`, a source with the same "
            "images, or continue the run from Python, with `sela_tf.run(images, workdir)`"
        )
    return found


def _arrays(data: ImagesFromPython, memory_limit: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns images or vectors, and class labels where there are any."""
    if isinstance(data, tf.data.Dataset):
        return _collected(data, memory_limit)
    if isinstance(data, tuple):
        if len(data) != 2:
            raise SourceError(f"a pair of images and class labels is wanted. Received: a tuple of {len(data)}")
        return _array(data[0]), _array(data[1])
    if isinstance(data, np.ndarray | tf.Tensor):
        return _array(data), None
    raise SourceError(
        "`dataset` must be the name of a source, an array of images or vectors, a pair of such an array and class labels, or a finite "
        f"tf.data.Dataset. Received: {type(data).__name__}"
    )


def _array(values: Any) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise SourceError("the array is masked, and masks are not read: fill it, or leave the masked images out")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise SourceError(f"images must have one size, and each one class label: resize them ({error})") from error


def _collected(data: tf.data.Dataset, memory_limit: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a tf.data.Dataset to its end."""
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise SourceError("the tf.data.Dataset is infinite: leave out its repeat(), because passes are repeated in training")
    spec = data.element_spec
    parts: tuple[Any, ...] = spec if isinstance(spec, tuple) else (spec,)
    if len(parts) not in (1, 2) or not all(isinstance(part, tf.TensorSpec) for part in parts):
        raise SourceError(f"the tf.data.Dataset must give images, or pairs of an image and a class label. Received: {spec}")
    if not (parts[0].dtype.is_integer or parts[0].dtype.is_floating):
        raise SourceError(
            f"the tf.data.Dataset must give images as numbers: map tf.io.decode_image. Received: {parts[0].dtype.name}"
        )
    has_classes = len(parts) == 2
    is_batched = _is_batched(*parts)
    images: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    size = 0
    for element in data:
        pair = element if isinstance(element, tuple) else (element,)
        some = pair[0].numpy() if is_batched else pair[0].numpy()[np.newaxis]
        size += some.size * (1 if some.ndim > 2 else some.itemsize)
        check_memory("the tf.data.Dataset", size, memory_limit)
        if images and some.shape[1:] != images[0].shape[1:]:
            raise SourceError(
                f"the tf.data.Dataset has images of several sizes, {list(images[0].shape[1:])} and {list(some.shape[1:])}: resize them"
            )
        images.append(some)
        if has_classes:
            classes.append(np.atleast_1d(pair[1].numpy()))
    if not images:
        raise SourceError("the tf.data.Dataset is empty")
    return np.concatenate(images), np.concatenate(classes) if has_classes else None


def _is_batched(images: tf.TensorSpec, classes: tf.TensorSpec | None = None) -> bool:
    """Returns True if the elements of a data set are batches.

    Raises:
        SourceError: It cannot be told.
    """
    shape = images.shape
    if classes is not None and classes.shape.rank != 1:
        return classes.shape.rank == 2
    if classes is not None:
        # A batch of numbers, or the one-hot label of one image.
        return None in (shape[0], classes.shape[0]) or (shape.rank > 1 and shape[0] == classes.shape[0])
    if shape.rank == 2 and shape[0] is not None:
        raise SourceError(
            f"elements of shape {list(shape)} may be gray images or batches of vectors: give images an axis of channels, "
            f"{[*shape, 1]}, or batch vectors without drop_remainder"
        )
    # An unknown number of images comes first in a batch.
    return shape.rank == 4 or (shape.rank in (2, 3) and shape[0] is None and shape[-1] not in (1, 3))


def _as_pixels(images: np.ndarray, tell: Callable[[str], None]) -> np.ndarray:
    """Returns images as uint8; numbers of another type must lie in [0, 255], and are rounded."""
    if images.dtype == np.uint8 or images.dtype.kind not in "fiu" or not images.size:
        return images
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and 1 < high <= 255):
        raise SourceError(
            f"images must lie in [0, 255]. Received: {images.dtype} in [{low:g}, {high:g}]"
            + (": multiply them by 255" if low >= 0 and high <= 1 else "")
        )
    tell(f"images of {images.dtype} in [{low:g}, {high:g}] are rounded to whole numbers")
    return np.rint(images).astype(np.uint8)
