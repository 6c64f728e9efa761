"""Sources of images: `load_source` makes image sets of what the setting `dataset` names. Each kind of source has a module."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from sela_tf.data.classes import with_classes_told
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import SourceName, Splits
from sela_tf.data.pixel_rules import DEFAULT_RULES, PixelRules
from sela_tf.data.rules_of_images import with_rules
from sela_tf.data.sources.arrays import (
    check_memory,
    load_digits,
    load_npz,
    load_synthetic,
    outline_synthetic,
    synthetic_count,
)
from sela_tf.data.sources.folder import load_folder, outline_folder
from sela_tf.data.sources.idx import load_idx
from sela_tf.data.sources.layout import ClassLevelError
from sela_tf.data.sources.python import load_given
from sela_tf.data.sources.records import load_records
from sela_tf.data.sources.tfds import load_tfds, outline_tfds
from sela_tf.data.sources.vectors import load_vectors

__all__ = ["SOURCES", "Outline", "SourceOptions", "existing_path", "load_source", "outline_source", "synthetic_count"]


class SourceOptions(NamedTuple):
    """The options of a source, for loading and for outlining it."""

    data_dir: str = ""
    """The directory where TFDS keeps its data sets; "" for TFDS' own default."""
    download: bool = False
    """Lets TFDS download and prepare a data set that is missing."""
    use_classes: bool = True
    """False leaves class labels out."""
    max_rejected: float = 0.0
    """The largest share of a folder's images that may be left out because they are damaged."""
    class_level: str = "auto"
    """The level of a folder's directories that are the classes: "auto", "parent", a number from 1, or "old"."""
    memory_limit: int = 4 * 2**30
    """The limit for decoded images, in bytes."""
    cache_dir: str = ""
    """The directory of listings of folders (`sela_tf.data.listing`); "" for none."""
    rules: PixelRules | None = DEFAULT_RULES
    """The pixel rules of a run; None where they are still to be made, by `make_rules`, of the images that are loaded."""

    @property
    def reads_as_before(self) -> bool:
        """True for a run that is older than the pixel rules, and reads the images that were read then."""
        return self.rules is not None and self.rules.are_old


_DEFAULTS = SourceOptions()


class Outline(NamedTuple):
    """The outline of a source: what is known of it before any image is decoded."""

    splits: Splits
    """Image sets against which settings can be checked. Nothing can be trained on them."""
    sizes_are_known: bool = True
    """True if a set without `image_size` has images of several sizes; False if their sizes are not known yet."""


class Request(NamedTuple):
    """A data set that is asked for, as the loader of its kind gets it."""

    source: SourceName
    """The data set as it was asked for, for messages."""
    path: str
    """The existing path or URL behind the colon, where the kind takes one; else all that stands there."""
    options: SourceOptions
    tell: Callable[[str], None] | None = None
    """A function that is called with lines about work that takes long; None for silence."""


class Source(NamedTuple):
    """A kind of source: the word before the colon of the setting `dataset`, and the functions that read it."""

    load: Callable[[Request], Splits]
    outline: Callable[[Request], Outline | None] | None = None
    """Outlines the source without decoding images; None for a kind that is loaded as it is, so that there is nothing to outline."""
    path: Literal["", "file", "directory"] = ""
    """The kind of path behind the colon; "" if there is none."""
    takes_urls: bool = False
    """The path may be a URL of a file system that TensorFlow knows."""


def _outline_folder(request: Request) -> Outline | None:
    options = request.options
    try:
        splits = outline_folder(
            request.path,
            source=request.source,
            class_level=options.class_level,
            cache_dir=options.cache_dir,
            reads_as_before=options.reads_as_before,
        )
    except ClassLevelError:
        raise
    except SourceError:  # Loading the folder gives a better message, because it finds all that is wrong.
        return None
    return Outline(splits, sizes_are_known=options.max_rejected == 0)


def _load_folder(request: Request) -> Splits:
    options = request.options
    return load_folder(
        request.path,
        source=request.source,
        max_rejected=options.max_rejected,
        class_level=options.class_level,
        cache_dir=options.cache_dir,
        reads_as_before=options.reads_as_before,
        tell=request.tell,
    )


def _outline_tfds(request: Request) -> Outline:
    splits = outline_tfds(request.source, data_dir=request.options.data_dir, download=request.options.download)
    return Outline(splits, sizes_are_known=splits.train.image_size is not None)


def _in_memory(options: SourceOptions) -> dict[str, Any]:
    """Returns the options of sources whose files are read as arrays."""
    return {"use_classes": options.use_classes, "memory_limit": options.memory_limit}


SOURCES = {
    "digits": Source(lambda r: load_digits(r.source)),
    "idx": Source(lambda r: load_idx(pathlib.Path(r.path), source=r.source, **_in_memory(r.options)), path="directory"),
    "npz": Source(lambda r: load_npz(pathlib.Path(r.path), source=r.source, **_in_memory(r.options)), path="file"),
    "features": Source(lambda r: load_vectors(pathlib.Path(r.path), source=r.source, **_in_memory(r.options)), path="file"),
    "folder": Source(_load_folder, outline=_outline_folder, path="directory", takes_urls=True),
    "records": Source(
        lambda r: load_records(r.path, source=r.source, memory_limit=r.options.memory_limit),
        outline=lambda r: Outline(load_records(r.path, source=r.source, memory_limit=0)),
        path="directory",
        takes_urls=True,
    ),
    "python": Source(lambda r: load_given(r.source)),
    "synthetic": Source(
        lambda r: load_synthetic(_count(r), source=r.source, memory_limit=r.options.memory_limit),
        outline=lambda r: Outline(outline_synthetic(_count(r), source=r.source, memory_limit=r.options.memory_limit)),
    ),
}
"""The kinds of sources, by the word before the colon. Everything else is the name of a TFDS data set."""

_TFDS = Source(
    lambda r: load_tfds(
        r.source,
        data_dir=r.options.data_dir,
        download=r.options.download,
        memory_limit=r.options.memory_limit,
        use_classes=r.options.use_classes,
    ),
    outline=_outline_tfds,
)


def _count(request: Request) -> int:
    """Returns the number of images of "synthetic" or "synthetic:N"."""
    return synthetic_count(request.source.name) or 0


def _requested(dataset: str, options: SourceOptions, setting: str, tell: Callable[[str], None] | None) -> tuple[Source, Request]:
    """Returns the kind of a data set, and the request for its loader.

    Raises:
        SourceError: The kind takes a path, and there is no such file or directory.
    """
    source = SourceName(dataset, setting)
    kind, _, rest = dataset.partition(":")
    found = SOURCES.get(kind, _TFDS)
    # "digits" takes nothing behind a colon: such a name can only be one of TFDS.
    if dataset.startswith("digits:"):
        found = _TFDS
    if found is _TFDS and dataset.startswith(("/", "./", "../", "~")):
        raise SourceError(f"{source}: there is no such directory or npz file")
    path = existing_path(str(source), kind, rest) if found.path else rest
    return found, Request(source, path, options, tell)


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
    source, request = _requested(dataset, options, setting, tell)
    splits = source.load(request)
    if options.rules is not None:
        splits = with_rules(splits, options.rules, memory_limit=options.memory_limit)
    for part in (splits.train, splits.eval):
        if part is not None and part.images is not None:
            check_memory(str(request.source), part.images.nbytes, options.memory_limit)
    return with_classes_told(splits if options.use_classes else without_classes(splits))


def outline_source(dataset: str, options: SourceOptions = _DEFAULTS, *, setting: str = "dataset") -> Outline | None:
    """Outlines a data set by headers, counts and listings, without decoding images.

    With `max_rejected`, the outline may count images that are left out on loading.

    Args:
        dataset: The data set, as for `load_source`.
        options: Directories, limits and what to leave out.
        setting: The setting that named the data set, for messages.

    Returns:
        The outline; None for a source that is not decoded and can as well be loaded, and for a folder in which no image was found.

    Raises:
        SourceError: The data set does not exist, or has no directories at the level of the classes.
    """
    source, request = _requested(dataset, options, setting, None)
    outline = None if source.outline is None else source.outline(request)
    if outline is None:
        return None
    return outline if options.use_classes else outline._replace(splits=without_classes(outline.splits))


def without_classes(splits: Splits) -> Splits:
    """Returns the splits without class labels."""
    return splits._replace(
        train=dataclasses.replace(splits.train, classes=None, class_names=None),
        eval=splits.eval and dataclasses.replace(splits.eval, classes=None, class_names=None),
        without_classes="`classes=none` leaves them out",
    )


def existing_path(name: str, kind: str, rest: str) -> str:
    """Returns the path of a source that is a file or a directory, with "~" expanded; URLs are returned unchanged.

    Args:
        name: The name of the data set, for messages.
        kind: The kind of the source, such as "folder"; one that is not in `SOURCES` is a directory.
        rest: The part of the data set's name behind the colon.

    Raises:
        SourceError: No path is given, nothing exists there, or it is a file instead of a directory or the reverse.
    """
    known = SOURCES.get(kind)
    is_file = known is not None and known.path == "file"
    if not rest:
        raise SourceError(f"{name}: say which {'file' if is_file else 'directory'}, as in {kind}:PATH")
    path = rest if "://" in rest else str(pathlib.Path(rest).expanduser())
    if "://" in rest and not (known is not None and known.takes_urls):
        raise SourceError(f"{name}: only folder: and records: may be URLs. Copy it to a local disk")
    if not tf.io.gfile.exists(path):
        raise SourceError(f"{name}: there is no {'file' if is_file else 'directory'} {path!r}")
    if is_file == tf.io.gfile.isdir(path):
        raise SourceError(f"{name}: {path!r} is {'a directory' if is_file else 'not a directory'}")
    return path
