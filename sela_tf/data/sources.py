"""Where images come from: every `--dataset` becomes an ImageSet, arrays in memory or files by path."""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import struct
import zlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from sela_tf.data.features import load_features, read_archive
from sela_tf.data.folder import load_folder
from sela_tf.data.image_set import ImageSet, SourceError, Splits
from sela_tf.data.records import load_records
from sela_tf.data.tfds_source import open_tfds

_SHOWN = 5
_INGEST = "Write them to records: python -m components.data_ingestion --dataset=… --examples=DIR, and use --dataset=records:DIR"
_SYNTHETIC_IMAGES, _SYNTHETIC_SIDE, _SYNTHETIC_CLASSES = 4096, 64, 10


def load_source(
    dataset: str,
    *,
    flag: str = "--dataset",
    data_dir: str = "",
    download: bool = False,
    use_classes: bool = True,
    skip_bad_images: bool = False,
    memory_limit: int = 4 * 2**30,
) -> Splits:
    """Loads what `--dataset` names.

    Args:
        dataset: "digits" (bundled with scikit-learn), "idx:DIR" (MNIST's format), "folder:DIR", "npz:FILE", "features:FILE" (vectors
            that stand for images), "records:DIR" (as components.data_ingestion writes them), "synthetic" or "synthetic:N" (images made
            on the fly, to try settings with), or a TFDS name such as "cifar10" or "fashion_mnist:3.*.*".
        flag: what messages call it.
        data_dir: where TFDS keeps its data sets.
        download: let TFDS download what is not there.
        use_classes: False to ignore class labels.
        skip_bad_images: leave out damaged files of a folder instead of refusing it.
        memory_limit: bytes that decoded images may take.

    Raises:
        SourceError: it is unknown, empty, damaged or too large.
    """
    name = f"{flag}={dataset}"
    kind, _, rest = dataset.partition(":")
    if kind in ("idx", "folder", "npz", "features", "records"):
        path = existing_path(name, kind, rest)
    if kind == "folder":
        splits = load_folder(path, name=name, skip_bad_images=skip_bad_images)
    elif kind == "records":
        splits = load_records(path, name=name, memory_limit=memory_limit)
    elif kind == "idx":
        splits = _idx(name, pathlib.Path(path))
    elif kind == "npz":
        splits = _npz(name, pathlib.Path(path))
    elif kind == "features":
        splits = load_features(pathlib.Path(path), name=name, memory_limit=memory_limit)
    elif dataset == "digits":
        splits = _digits()
    elif kind == "synthetic":
        splits = _synthetic(name, rest)
    else:
        splits = _tfds(name, dataset, data_dir, download, memory_limit)
    for part in (splits.train, splits.eval):
        if part is not None and part.images is not None and part.images.nbytes > memory_limit:
            raise SourceError(_too_large(name, part.images.nbytes, memory_limit))
    if not use_classes:
        splits = splits._replace(
            train=dataclasses.replace(splits.train, classes=None, class_names=None),
            eval=splits.eval and dataclasses.replace(splits.eval, classes=None, class_names=None),
        )
    return splits


def existing_path(name: str, kind: str, rest: str) -> str:
    """Of a source that is a file or a directory, where it is: a URL stays one.

    Raises:
        SourceError: nothing is there, or the other of the two.
    """
    is_file = kind in ("npz", "features")
    if not rest:
        raise SourceError(f"{name}: say which {'file' if is_file else 'directory'}, as in {kind}:PATH")
    path = rest if "://" in rest else str(pathlib.Path(rest).expanduser())
    if "://" in rest and kind not in ("folder", "records"):
        raise SourceError(f"{name}: only folder: and records: may be URLs. Copy it to a local disk")
    if not tf.io.gfile.exists(path):
        raise SourceError(f"{name}: there is no {'file' if is_file else 'directory'} {path!r}")
    if is_file == tf.io.gfile.isdir(path):
        raise SourceError(f"{name}: {path!r} is {'a directory' if is_file else 'not a directory'}")
    return path


def _array_set(name: str, images: np.ndarray, classes: np.ndarray | None, class_names: Iterable[str] | None = None) -> ImageSet:
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
        images=images,
        classes=None if classes is None else classes.astype(np.int64),
        class_names=None if class_names is None else tuple(class_names),
        image_size=images.shape[1:3],
    )


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Splits(_array_set("--dataset=digits", pixels, digits.target, [str(digit) for digit in range(10)]), None)


def _synthetic(name: str, count: str) -> Splits:
    """Gratings in colour and noise, a class for each direction: no data to learn anything from but whether settings work."""
    if count and not (count.isdecimal() and 0 < int(count) < 10**6):
        raise SourceError(f"{name}: synthetic:N makes N images, less than a million. Received: {count!r}")
    num_images = int(count or _SYNTHETIC_IMAGES)
    rng = np.random.default_rng(0)
    classes = np.arange(num_images) % _SYNTHETIC_CLASSES
    angle = (np.pi / _SYNTHETIC_CLASSES * classes).astype(np.float32)[:, np.newaxis, np.newaxis]
    y, x = np.mgrid[0 : 1 : _SYNTHETIC_SIDE * 1j, 0 : 1 : _SYNTHETIC_SIDE * 1j].astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (num_images, 1, 1)).astype(np.float32)
    wave = np.sin(8 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    images = np.empty((num_images, _SYNTHETIC_SIDE, _SYNTHETIC_SIDE, 3), np.uint8)
    for channel in range(3):
        strength = rng.uniform(20, 80, (num_images, 1, 1)).astype(np.float32)
        noise = rng.integers(-30, 31, wave.shape, dtype=np.int16)
        images[..., channel] = np.clip(128 + strength * wave + noise, 0, 255)
    return Splits(_array_set(name, images, classes, [f"direction {i}" for i in range(_SYNTHETIC_CLASSES)]), None)


def _idx(name: str, directory: pathlib.Path) -> Splits:
    def part(stem: str) -> ImageSet | None:
        def read(suffix: str) -> np.ndarray | None:
            for file in (f"{stem}-{suffix}-ubyte.gz", f"{stem}-{suffix}-ubyte", f"{stem}-{suffix.replace('-', '.')}-ubyte"):
                if (directory / file).is_file():
                    return _read_idx(name, directory / file)
            return None

        images = read("images-idx3")
        return None if images is None else _array_set(name, images, read("labels-idx1"))

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


def _npz(name: str, path: pathlib.Path) -> Splits:
    """`images`, `classes`, `eval_images`, `eval_classes`; or the names of Keras' mnist.npz: x_train, y_train, x_test, y_test."""
    arrays = read_archive(name, path)
    named = {"x_train": "images", "y_train": "classes", "x_test": "eval_images", "y_test": "eval_classes"}
    arrays = {named.get(key, key): value for key, value in arrays.items()}

    def part(prefix: str) -> ImageSet | None:
        if prefix + "images" not in arrays:
            return None
        classes = arrays.get(prefix + "classes")
        return _array_set(name, arrays[prefix + "images"], None if classes is None else classes.reshape(-1))

    train = part("")
    if train is None:
        raise SourceError(f"{name}: {str(path)!r} has no array 'images' or 'x_train' (it has {', '.join(arrays)})")
    return Splits(train, part("eval_"))


def _tfds(name: str, dataset: str, data_dir: str, download: bool, memory_limit: int) -> Splits:
    prepared = open_tfds(name, dataset, data_dir=data_dir, download=download)

    def part(split: str) -> ImageSet:
        images: list[np.ndarray] = []
        classes: list[int] = []
        size = 0
        for pixels, class_number in prepared.examples(split):
            images.append(pixels)
            classes.append(class_number)
            size += pixels.nbytes
            if pixels.shape != images[0].shape:
                raise SourceError(f"{name}: its images have many sizes ({images[0].shape}, {pixels.shape}, …). {_INGEST}")
            if size > memory_limit:
                raise SourceError(_too_large(name, size, memory_limit))
        known = prepared.class_names is not None
        return _array_set(name, np.stack(images), np.array(classes, np.int64) if known else None, prepared.class_names)

    return Splits(part(prepared.train), part(prepared.eval) if prepared.eval else None)


def _too_large(name: str, size: int, limit: int) -> str:
    return (
        f"{name}: its decoded images take more than {size / 2**30:.1f} GiB, --memory_limit={limit / 2**30:g} GiB. "
        f"Raise it, or read them as they are needed. {_INGEST}"
    )
