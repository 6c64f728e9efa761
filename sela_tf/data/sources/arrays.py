"""Sources that are loaded into memory as arrays: digits, npz and synthetic."""

from __future__ import annotations

import pathlib

import numpy as np

from sela_tf.data.classes import ClassLabels, labels_of
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet, SourceName, Splits
from sela_tf.data.sources.array_files import lacks, read_arrays
from sela_tf.data.stores import Arrays, Unread

INGEST = "Write them to records with python -m components.data_ingestion, and use `dataset=records:DIR`"
"""The advice for images that do not fit into memory."""
_AT_ONCE = 1000
_SYNTHETIC_IMAGES, _SYNTHETIC_SIDE, _SYNTHETIC_CLASSES = 4096, 64, 10


def array_set(source: SourceName, images: np.ndarray, labels: ClassLabels | None) -> ImageSet:
    """Makes an image set of arrays.

    Args:
        source: The name of the source.
        images: Pixels, uint8 `[N, H, W]` or `[N, H, W, C]`, C = 1 or 3.
        labels: Class labels; None if they are not known.

    Raises:
        SourceError: The images have another shape or dtype.
    """
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise SourceError(
            f"{source}: images must be uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3 (lay transparency on a background first) and N > 0. "
            f"Received: {images.dtype} {list(images.shape)}"
        )
    return ImageSet(
        name=source.name,
        setting=source.setting,
        channels=images.shape[-1],
        store=Arrays(images),
        classes=None if labels is None else labels.numbers,
        class_names=None if labels is None else labels.names,
        image_size=images.shape[1:3],
    )


def load_digits(source: SourceName) -> Splits:
    """Loads the digits bundled with scikit-learn: 1797 gray images of 8 x 8 pixels in 10 classes."""
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = ClassLabels(digits.target.astype(np.int64), tuple(str(digit) for digit in range(10)))
    return Splits(array_set(source, pixels, labels), None)


def synthetic_count(dataset: str) -> int | None:
    """Returns the number of images of "synthetic" or "synthetic:N"; None for any other data set.

    Raises:
        SourceError: N is not a number from 1 to 2**31 - 1.
    """
    kind, _, count = dataset.partition(":")
    if kind != "synthetic":
        return None
    if count and not (count.isdecimal() and 0 < int(count) < 2**31):
        raise SourceError(f"`dataset={dataset}`: synthetic:N makes N images, from 1 to less than 2**31. Received: {count!r}")
    return int(count or _SYNTHETIC_IMAGES)


def outline_synthetic(count: int, *, source: SourceName, memory_limit: int) -> Splits:
    """Outlines the images of `load_synthetic` without making them.

    Raises:
        SourceError: The images take more than `memory_limit` bytes.
    """
    check_memory(str(source), count * _SYNTHETIC_SIDE**2 * 3, memory_limit)
    image_size = (_SYNTHETIC_SIDE, _SYNTHETIC_SIDE)
    images = ImageSet(name=source.name, setting=source.setting, channels=3, store=Unread(count), image_size=image_size)
    return Splits(images, None)


def load_synthetic(count: int, *, source: SourceName, memory_limit: int) -> Splits:
    """Makes `count` coloured, noisy gratings of 64 x 64 pixels in 10 classes, one for each direction, to try settings with.

    Raises:
        SourceError: The images take more than `memory_limit` bytes.
    """
    check_memory(str(source), count * _SYNTHETIC_SIDE**2 * 3, memory_limit)
    rng = np.random.default_rng(0)
    classes = np.arange(count) % _SYNTHETIC_CLASSES
    angle = (np.pi / _SYNTHETIC_CLASSES * classes).astype(np.float32)[:, np.newaxis, np.newaxis]
    y, x = np.mgrid[0 : 1 : _SYNTHETIC_SIDE * 1j, 0 : 1 : _SYNTHETIC_SIDE * 1j].astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
    images = np.empty((count, _SYNTHETIC_SIDE, _SYNTHETIC_SIDE, 3), np.uint8)
    for channel in range(3):
        strength = rng.uniform(20, 80, (count, 1, 1)).astype(np.float32)
        noise = rng.integers(-30, 31, images.shape[:3], dtype=np.int16)
        # The waves of all images at once would take several times the memory of the images.
        for start in range(0, count, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            wave = np.sin(8 * np.pi * (x * np.cos(angle[some]) + y * np.sin(angle[some])) + phase[some])
            images[some, ..., channel] = np.clip(128 + strength[some] * wave + noise[some], 0, 255)
    labels = ClassLabels(classes.astype(np.int64), tuple(f"direction {i}" for i in range(_SYNTHETIC_CLASSES)))
    return Splits(array_set(source, images, labels), None)


_KERAS_NAMES = {"x_train": "images", "y_train": "classes", "x_test": "eval_images", "y_test": "eval_classes"}
"""The names here of the arrays in Keras' mnist.npz."""


def load_npz(path: pathlib.Path, *, source: SourceName, use_classes: bool = True, memory_limit: int) -> Splits:
    """Loads an npz file with the array `images` and, if they exist, `classes`, `eval_images` and `eval_classes`; or an npy file of images.

    The names of Keras' mnist.npz (x_train, y_train, x_test, y_test) mean the same. Other arrays are not read.

    Args:
        path: The file. Its content decides on its kind, not its name.
        source: The name of the source.
        use_classes: False leaves class labels out, whatever they are.
        memory_limit: Bytes that the arrays may take.

    Raises:
        SourceError: The file is not such a file or too large, or an array has another shape, dtype or other values.
    """
    keys = ["images", "eval_images", *(["classes", "eval_classes"] if use_classes else [])]
    found = read_arrays(path, [*keys, *_KERAS_NAMES], alone="images", source=str(source), memory_limit=memory_limit)
    for theirs, ours in _KERAS_NAMES.items():
        if theirs in found.arrays and ours in found.arrays:
            raise SourceError(
                f"{source}: {str(path)!r} has both {ours!r} and {theirs!r}, which mean the same: leave one of them out"
            )
    arrays = {_KERAS_NAMES.get(key, key): values for key, values in found.arrays.items()}
    if "images" not in arrays:
        as_vectors = f": for vectors, `{source.setting}=features:{path}`" if "features" in found.names else ""
        raise lacks(path, found, f"'images' or 'x_train'{as_vectors}", source=str(source))
    labels = labels_of(arrays, "images", source=str(source)) if use_classes else {}

    def part(prefix: str) -> ImageSet:
        return array_set(source, np.asarray(arrays[prefix + "images"]), labels.get(prefix + "classes"))

    held_out = part("eval_") if "eval_images" in arrays else None
    return Splits(part(""), held_out, tuple(each.note for each in labels.values() if each.note))


def check_memory(name: str, size: int, limit: int) -> None:
    """Checks that decoded images fit into memory.

    Args:
        name: The name of the data set, for messages.
        size: Bytes that the images take.
        limit: Bytes that they may take.

    Raises:
        SourceError: They take more.
    """
    if size > limit:
        raise SourceError(
            f"{name}: its decoded images take more than {size / 2**30:.1f} GiB, `memory_limit={limit / 2**30:g}` GiB. "
            f"Raise it, or read them as they are needed. {INGEST}"
        )
