"""The sources of images: every `--dataset` becomes ImageSets, by a module for each kind of source."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import Splits
from sela_tf.data.sources.arrays import (
    check_memory,
    load_digits,
    load_idx,
    load_npz,
    load_synthetic,
    outline_synthetic,
    synthetic_count,
)
from sela_tf.data.sources.folder import load_folder, outline_folder
from sela_tf.data.sources.records import load_records
from sela_tf.data.sources.tfds import load_tfds, outline_tfds
from sela_tf.data.sources.vectors import load_vectors

__all__ = ["Outline", "existing_path", "load_source", "outline_source", "synthetic_count"]

_IN_MEMORY = ("digits", "idx", "npz", "features")


def load_source(
    dataset: str,
    *,
    flag: str = "--dataset",
    data_dir: str = "",
    download: bool = False,
    use_classes: bool = True,
    skip_bad_images: bool = False,
    memory_limit: int = 4 * 2**30,
    cache_dir: str = "",
    tell: Callable[[str], None] | None = None,
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
        cache_dir: where it is listed what is in the files of a folder, so that they are not decoded each time; "" for nowhere.
        tell: is given a line about what takes long.

    Raises:
        SourceError: it is unknown, empty, damaged or too large.
    """
    name = f"{flag}={dataset}"
    kind, _, rest = dataset.partition(":")
    count = synthetic_count(dataset)
    if kind in ("idx", "folder", "npz", "features", "records"):
        path = existing_path(name, kind, rest)
    if kind == "folder":
        splits = load_folder(path, name=name, skip_bad_images=skip_bad_images, cache_dir=cache_dir, tell=tell)
    elif kind == "records":
        splits = load_records(path, name=name, memory_limit=memory_limit)
    elif kind == "idx":
        splits = load_idx(pathlib.Path(path), name=name)
    elif kind == "npz":
        splits = load_npz(pathlib.Path(path), name=name)
    elif kind == "features":
        splits = load_vectors(pathlib.Path(path), name=name, memory_limit=memory_limit)
    elif dataset == "digits":
        splits = load_digits()
    elif count is not None:
        splits = load_synthetic(count, name=name, memory_limit=memory_limit)
    else:
        splits = load_tfds(dataset, name=name, data_dir=data_dir, download=download, memory_limit=memory_limit)
    for part in (splits.train, splits.eval):
        if part is not None and part.images is not None:
            check_memory(name, part.images.nbytes, memory_limit)
    return splits if use_classes else _without_classes(splits)


class Outline(NamedTuple):
    """The outline of a source: all that is known of it before anything in it is decoded."""

    splits: Splits
    """Sets that settings can be held to, and nothing be trained on."""
    sizes_are_known: bool = True
    """No `image_size` means that there are many sizes, and not that nobody knows."""


def outline_source(
    dataset: str,
    *,
    flag: str = "--dataset",
    data_dir: str = "",
    download: bool = False,
    use_classes: bool = True,
    skip_bad_images: bool = False,
    memory_limit: int = 4 * 2**30,
    cache_dir: str = "",
) -> Outline | None:
    """Outlines a source without decoding, by headers, counts and listings; the arguments are those of `load_source`. Where damaged
    images are left out, there may be fewer than are counted here.

    None where there is nothing to be decoded, so that it can as well be loaded, and of a folder where there is no image.

    Raises:
        SourceError: it is not there.
    """
    name = f"{flag}={dataset}"
    kind, _, rest = dataset.partition(":")
    count = synthetic_count(dataset)
    if kind in _IN_MEMORY:
        return None
    if kind == "folder":
        path = existing_path(name, kind, rest)
        try:
            outline = Outline(outline_folder(path, name=name, cache_dir=cache_dir), sizes_are_known=not skip_bad_images)
        except SourceError:  # loading says it better, having seen all that is wrong
            return None
    elif kind == "records":
        outline = Outline(load_records(existing_path(name, kind, rest), name=name, memory_limit=0))
    elif count is not None:
        outline = Outline(outline_synthetic(count, name=name, memory_limit=memory_limit))
    else:
        splits = outline_tfds(dataset, name=name, data_dir=data_dir, download=download)
        outline = Outline(splits, sizes_are_known=splits.train.image_size is not None)
    return outline if use_classes else outline._replace(splits=_without_classes(outline.splits))


def _without_classes(splits: Splits) -> Splits:
    return splits._replace(
        train=dataclasses.replace(splits.train, classes=None, class_names=None),
        eval=splits.eval and dataclasses.replace(splits.eval, classes=None, class_names=None),
    )


def existing_path(name: str, kind: str, rest: str) -> str:
    """The path of a source that is a file or a directory; a URL stays one.

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
