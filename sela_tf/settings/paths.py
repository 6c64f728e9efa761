"""Paths in settings, made absolute so that they mean the same files elsewhere."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from sela_tf.settings.fields import ConfigError

SOURCES_WITH_PATH = ("idx", "folder", "npz", "features", "records", "tfrecords")
SOURCES_WITHOUT_PATH = ("digits", "python", "synthetic")


def absolute_path(path: str) -> str:
    """Returns the absolute form of a path, which may begin with ~."""
    return os.path.abspath(os.path.expanduser(path))


def refuse_unwritable(setting: str, path: pathlib.Path) -> None:
    """Checks that a directory can be written to, or made.

    Args:
        setting: the setting that names it, for the message.
        path: its absolute path.

    Raises:
        ConfigError: it cannot.
    """
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigError(f"`{setting}={path}` cannot be written: {there} is no directory that you may write to")


def absolute_cache(cache_dir: str) -> str:
    """Returns the absolute path of the cache directory; by default, of an empty value, the one that the user's system has for caches."""
    return absolute_path(cache_dir or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sela_tf"))


def absolute_source(dataset: str, *, tell: Callable[[str], None] | None = None) -> str:
    """Returns a source of images with an absolute path, so that it names the same data in any directory.

    The path of a directory stands for `folder:DIR`, that of an npz file for `npz:FILE`. A word without a slash is the name of a TFDS data
    set where there is one, else a directory here.

    Args:
        dataset: The source as it was given.
        tell: A function that is called with a line if the source was a path.
    """
    kind, colon, path = dataset.partition(":")
    if kind in SOURCES_WITH_PATH and colon:
        return dataset if not path or "://" in path else f"{kind}{colon}{absolute_path(path)}"
    if not dataset or "://" in dataset:
        return dataset
    found = absolute_path(dataset)
    if os.path.isdir(found) and (os.sep in dataset or not _is_name(dataset)):
        kind = "folder"
    elif os.path.isfile(found) and found.lower().endswith(".npz"):
        kind = "npz"
    else:
        return dataset
    if tell is not None:
        tell(f"{dataset!r} is taken for {kind}:{found}")
    return f"{kind}:{found}"


def _is_name(word: str) -> bool:
    """Returns True for the name of a data set: one of those without a path, or one that TFDS knows."""
    if word in SOURCES_WITHOUT_PATH:
        return True
    # TFDS takes a second to import, and is asked only where a directory has the name.
    try:
        import tensorflow_datasets as tfds

        return word in tfds.list_builders(with_community_datasets=False)
    except (ImportError, AttributeError):  # Without TFDS, or with one that lacks its own packages, no word is a name of it.
        return False
