"""Paths in settings, made absolute so that they mean the same files elsewhere."""

from __future__ import annotations

import os
import pathlib

from sela_tf.settings.fields import ConfigError

SOURCES_WITH_PATH = ("idx", "folder", "npz", "features", "records", "tfrecords")


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


def absolute_source(dataset: str) -> str:
    """Returns a source of images with an absolute path, so that it names the same data in any directory."""
    kind, colon, path = dataset.partition(":")
    if kind not in SOURCES_WITH_PATH or not path or "://" in path:
        return dataset
    return f"{kind}{colon}{absolute_path(path)}"
