"""Sources of images: `load_source` makes image sets of what the setting `dataset` names. Each kind of source has a module."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import SourceName, Splits
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

__all__ = ["Outline", "SourceOptions", "existing_path", "load_source", "outline_source", "synthetic_count"]

_IN_MEMORY = ("digits", "idx", "npz", "features")
"""Kinds of sources that are loaded as they are, so that there is nothing to outline."""


class SourceOptions(NamedTuple):
    """The options of a source, for loading and for outlining it."""

    data_dir: str = ""
    """The directory where TFDS keeps its data sets; "" for TFDS' own default."""
    download: bool = False
    """Lets TFDS download and prepare a data set that is missing."""
    use_classes: bool = True
    """False leaves class labels out."""
    skip_bad_images: bool = False
    """Leaves damaged files of a folder out, instead of refusing the folder."""
    memory_limit: int = 4 * 2**30
    """The limit for decoded images, in bytes."""
    cache_dir: str = ""
    """The directory of listings of folders (`sela_tf.data.listing`); "" for none."""


_DEFAULTS = SourceOptions()


def load_source(
    dataset: str,
    options: SourceOptions = _DEFAULTS,
    *,
    setting: str = "dataset",
    tell: Callable[[str], None] | None = None,
) -> Splits:
    """Loads a data set.

    Args:
        dataset: "digits" (bundled with scikit-learn), "idx:DIR" (MNIST's format), "folder:DIR", "npz:FILE", "features:FILE" (vectors
            that stand for images), "records:DIR" (written by components.data_ingestion), "synthetic" or "synthetic:N" (N images
            made on the fly, to try settings with), or a TFDS name such as "cifar10" or "fashion_mnist:3.*.*".
        options: Directories, limits and what to leave out.
        setting: The setting that named the data set, "dataset" or "eval_dataset", for messages.
        tell: A function that is called with lines about work that takes long.

    Raises:
        SourceError: The data set is unknown, empty, damaged or too large.
    """
    source = SourceName(dataset, setting)
    name = str(source)
    kind, _, rest = dataset.partition(":")
    count = synthetic_count(dataset)
    if kind in ("idx", "folder", "npz", "features", "records"):
        path = existing_path(name, kind, rest)
    if kind == "folder":
        splits = load_folder(path, source=source, skip_bad_images=options.skip_bad_images, cache_dir=options.cache_dir, tell=tell)
    elif kind == "records":
        splits = load_records(path, source=source, memory_limit=options.memory_limit)
    elif kind == "idx":
        splits = load_idx(pathlib.Path(path), source=source)
    elif kind == "npz":
        splits = load_npz(pathlib.Path(path), source=source)
    elif kind == "features":
        splits = load_vectors(pathlib.Path(path), source=source, memory_limit=options.memory_limit)
    elif dataset == "digits":
        splits = load_digits(source)
    elif count is not None:
        splits = load_synthetic(count, source=source, memory_limit=options.memory_limit)
    else:
        splits = load_tfds(source, data_dir=options.data_dir, download=options.download, memory_limit=options.memory_limit)
    for part in (splits.train, splits.eval):
        if part is not None and part.images is not None:
            check_memory(name, part.images.nbytes, options.memory_limit)
    return splits if options.use_classes else _without_classes(splits)


class Outline(NamedTuple):
    """The outline of a source: what is known of it before any image is decoded."""

    splits: Splits
    """Image sets against which settings can be checked. Nothing can be trained on them."""
    sizes_are_known: bool = True
    """True if a set without `image_size` has images of several sizes; False if their sizes are not known yet."""


def outline_source(dataset: str, options: SourceOptions = _DEFAULTS, *, setting: str = "dataset") -> Outline | None:
    """Outlines a data set by headers, counts and listings, without decoding images.

    With `skip_bad_images`, the outline may count images that are left out on loading.

    Args:
        dataset: The data set, as for `load_source`.
        options: Directories, limits and what to leave out.
        setting: The setting that named the data set, for messages.

    Returns:
        The outline; None for a source that is not decoded and can as well be loaded, and for a folder in which no image was found.

    Raises:
        SourceError: The data set does not exist.
    """
    source = SourceName(dataset, setting)
    name = str(source)
    kind, _, rest = dataset.partition(":")
    count = synthetic_count(dataset)
    if kind in _IN_MEMORY:
        return None
    if kind == "folder":
        path = existing_path(name, kind, rest)
        try:
            splits = outline_folder(path, source=source, cache_dir=options.cache_dir)
        except SourceError:  # Loading the folder gives a better message, because it finds all that is wrong.
            return None
        outline = Outline(splits, sizes_are_known=not options.skip_bad_images)
    elif kind == "records":
        outline = Outline(load_records(existing_path(name, kind, rest), source=source, memory_limit=0))
    elif count is not None:
        outline = Outline(outline_synthetic(count, source=source, memory_limit=options.memory_limit))
    else:
        splits = outline_tfds(source, data_dir=options.data_dir, download=options.download)
        outline = Outline(splits, sizes_are_known=splits.train.image_size is not None)
    return outline if options.use_classes else outline._replace(splits=_without_classes(outline.splits))


def _without_classes(splits: Splits) -> Splits:
    return splits._replace(
        train=dataclasses.replace(splits.train, classes=None, class_names=None),
        eval=splits.eval and dataclasses.replace(splits.eval, classes=None, class_names=None),
    )


def existing_path(name: str, kind: str, rest: str) -> str:
    """Returns the path of a source that is a file or a directory, with "~" expanded; URLs are returned unchanged.

    Args:
        name: The name of the data set, for messages.
        kind: The kind of the source, such as "folder": "npz" and "features" are files, all others directories.
        rest: The part of the data set's name behind the colon.

    Raises:
        SourceError: No path is given, nothing exists there, or it is a file instead of a directory or the reverse.
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
