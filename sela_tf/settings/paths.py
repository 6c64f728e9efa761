"""Paths in settings, made absolute so that they mean the same files elsewhere."""

from __future__ import annotations

import os
import pathlib

from sela_tf.settings.fields import ConfigError

SOURCES_WITH_PATH = ("idx", "folder", "npz", "features", "records", "tfrecords")


def absolute_path(path: str) -> str:
    """Of a path that may begin with ~."""
    return os.path.abspath(os.path.expanduser(path))


def refuse_unwritable(flag: str, path: pathlib.Path) -> None:
    """Of an absolute path of a directory that is there or will be made.

    Raises:
        ConfigError: it cannot be.
    """
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigError(f"`{flag}={path}` cannot be written: {there} is no directory that you may write to")


def absolute_cache(cache_dir: str) -> str:
    """The directory for what is found out once; by default the one that the user's system has for it."""
    return absolute_path(cache_dir or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sela_tf"))


def absolute_source(dataset: str) -> str:
    """The same data set wherever the command is given."""
    kind, colon, path = dataset.partition(":")
    if kind not in SOURCES_WITH_PATH or not path or "://" in path:
        return dataset
    return f"{kind}{colon}{absolute_path(path)}"
