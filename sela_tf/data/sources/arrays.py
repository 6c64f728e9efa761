"""Images that are read or made whole, as arrays: digits, idx, npz, synthetic."""

from __future__ import annotations

import gzip
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterable

import numpy as np

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet, Splits
from sela_tf.data.stores import Arrays, Unread

INGEST = "Write them to records: python -m components.data_ingestion --dataset=… --examples=DIR, and use --dataset=records:DIR"
_SHOWN, _AT_ONCE = 5, 1000
_SYNTHETIC_IMAGES, _SYNTHETIC_SIDE, _SYNTHETIC_CLASSES = 4096, 64, 10


def array_set(name: str, images: np.ndarray, classes: np.ndarray | None, class_names: Iterable[str] | None = None) -> ImageSet:
    """Pixels uint8 [N, H, W] or [N, H, W, C] and the numbers of their classes as a set.

    Raises:
        SourceError: they are not of this kind.
    """
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise SourceError(
            f"{name}: images must be uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3 and N > 0. "
            f"Received: {images.dtype} {list(images.shape)}"
        )
    if classes is not None and (
        classes.shape != images.shape[:1] or classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= 2**63
    ):
        raise SourceError(f"{name}: classes must be {len(images)} integers from 0. Received: {classes.dtype} {list(classes.shape)}")
    return ImageSet(
        name=name,
        channels=images.shape[-1],
        store=Arrays(images),
        classes=None if classes is None else classes.astype(np.int64),
        class_names=None if class_names is None else tuple(class_names),
        image_size=images.shape[1:3],
    )


def load_digits() -> Splits:
    """scikit-learn's 1797 images of 8 x 8."""
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Splits(array_set("--dataset=digits", pixels, digits.target, [str(digit) for digit in range(10)]), None)


def synthetic_count(dataset: str) -> int | None:
    """The number of images that "synthetic" or "synthetic:N" stands for, of which none is made; None of any other data set.

    Raises:
        SourceError: N is no such number.
    """
    kind, _, count = dataset.partition(":")
    if kind != "synthetic":
        return None
    if count and not (count.isdecimal() and 0 < int(count) < 2**31):
        raise SourceError(f"--dataset={dataset}: synthetic:N makes N images, from 1 to less than 2**31. Received: {count!r}")
    return int(count or _SYNTHETIC_IMAGES)


def outline_synthetic(count: int, *, name: str, memory_limit: int) -> Splits:
    """Outlines what `load_synthetic` would make, without making images.

    Raises:
        SourceError: so many do not fit.
    """
    check_memory(name, count * _SYNTHETIC_SIDE**2 * 3, memory_limit)
    image_size = (_SYNTHETIC_SIDE, _SYNTHETIC_SIDE)
    return Splits(ImageSet(name=name, channels=3, store=Unread(count), image_size=image_size), None)


def load_synthetic(count: int, *, name: str, memory_limit: int) -> Splits:
    """Gratings in colour and noise, a class for each direction: no data to learn anything from but whether settings work.

    Raises:
        SourceError: so many do not fit.
    """
    check_memory(name, count * _SYNTHETIC_SIDE**2 * 3, memory_limit)
    rng = np.random.default_rng(0)
    classes = np.arange(count) % _SYNTHETIC_CLASSES
    angle = (np.pi / _SYNTHETIC_CLASSES * classes).astype(np.float32)[:, np.newaxis, np.newaxis]
    y, x = np.mgrid[0 : 1 : _SYNTHETIC_SIDE * 1j, 0 : 1 : _SYNTHETIC_SIDE * 1j].astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
    images = np.empty((count, _SYNTHETIC_SIDE, _SYNTHETIC_SIDE, 3), np.uint8)
    for channel in range(3):
        strength = rng.uniform(20, 80, (count, 1, 1)).astype(np.float32)
        noise = rng.integers(-30, 31, images.shape[:3], dtype=np.int16)
        # waves of all images at once would take several times the memory of the images
        for start in range(0, count, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            wave = np.sin(8 * np.pi * (x * np.cos(angle[some]) + y * np.sin(angle[some])) + phase[some])
            images[some, ..., channel] = np.clip(128 + strength[some] * wave + noise[some], 0, 255)
    return Splits(array_set(name, images, classes, [f"direction {i}" for i in range(_SYNTHETIC_CLASSES)]), None)


def load_idx(directory: pathlib.Path, *, name: str) -> Splits:
    """The files of MNIST's format in a directory.

    Raises:
        SourceError: they are missing, cut or damaged.
    """

    def part(stem: str) -> ImageSet | None:
        def read(suffix: str) -> np.ndarray | None:
            for file in (f"{stem}-{suffix}-ubyte.gz", f"{stem}-{suffix}-ubyte", f"{stem}-{suffix.replace('-', '.')}-ubyte"):
                if (directory / file).is_file():
                    return _read_idx(name, directory / file)
            return None

        images = read("images-idx3")
        return None if images is None else array_set(name, images, read("labels-idx1"))

    train = part("train")
    if train is None:
        found = ", ".join(sorted(os.listdir(directory))[:_SHOWN]) or "nothing"
        raise SourceError(f"{name}: no train-images-idx3-ubyte[.gz] in {str(directory)!r} (it holds {found})")
    return Splits(train, part("t10k"))


def _read_idx(name: str, path: pathlib.Path) -> np.ndarray:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        zero, kind, rank = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
        if (zero, kind) != (0, 8):
            raise SourceError(f"{name}: {str(path)!r} is not an idx file of unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{name}: {str(path)!r} is cut or damaged ({error})") from error


def load_npz(path: pathlib.Path, *, name: str) -> Splits:
    """`images`, `classes`, `eval_images`, `eval_classes`; or the names of Keras' mnist.npz: x_train, y_train, x_test, y_test.

    Raises:
        SourceError: the file is no such file, or its arrays are of another kind.
    """
    arrays = read_archive(name, path)
    named = {"x_train": "images", "y_train": "classes", "x_test": "eval_images", "y_test": "eval_classes"}
    arrays = {named.get(key, key): value for key, value in arrays.items()}

    def part(prefix: str) -> ImageSet | None:
        if prefix + "images" not in arrays:
            return None
        classes = arrays.get(prefix + "classes")
        return array_set(name, arrays[prefix + "images"], None if classes is None else classes.reshape(-1))

    train = part("")
    if train is None:
        raise SourceError(f"{name}: {str(path)!r} has no array 'images' or 'x_train' (it has {', '.join(arrays)})")
    return Splits(train, part("eval_"))


def read_archive(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file.

    Raises:
        SourceError: it is none, or not a whole one.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an archive")
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile, AttributeError) as error:
        raise SourceError(f"{name}: {str(path)!r} is not an npz file, or not a whole one") from error


def check_memory(name: str, size: int, limit: int) -> None:
    """Raises:
    SourceError: decoded images take more bytes than they may.
    """
    if size > limit:
        raise SourceError(
            f"{name}: its decoded images take more than {size / 2**30:.1f} GiB, --memory_limit={limit / 2**30:g} GiB. "
            f"Raise it, or read them as they are needed. {INGEST}"
        )
