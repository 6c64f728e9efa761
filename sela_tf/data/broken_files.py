"""The image file behind an error that a TensorFlow graph ended with."""

from __future__ import annotations

import contextlib
import os

import tensorflow as tf

from sela_tf.data.decoding import check_image
from sela_tf.data.errors import SourceError, source_error_behind
from sela_tf.data.headers import BadImageError
from sela_tf.data.stores import READ_IN_GRAPHS

_MOST_CHECKED = 1000
"""The most files that are decoded to find a damaged one, those that were changed last."""


def source_error_of(error: Exception) -> SourceError | None:
    """Returns the error that says which data a graph could not read; None for an error of something else."""
    if (behind := source_error_behind(error)) is not None:
        return behind
    if not isinstance(error, tf.errors.OpError):
        return None
    paths = [path for store in READ_IN_GRAPHS for path in store.paths]
    named = [path for path in paths if path in error.message]
    if named:
        # The name of one file may begin with that of another.
        path = max(named, key=len)
        return _unreadable(path, error.message.partition(path)[2].removeprefix("; ").splitlines()[0])
    # A decoder does not know the name of the file.
    if isinstance(error, tf.errors.InvalidArgumentError):
        for path in sorted(paths, key=_time_of_change, reverse=True)[:_MOST_CHECKED]:
            try:
                with tf.io.gfile.GFile(path, "rb") as file:
                    check_image(file.read())
            except BadImageError as damage:
                return _unreadable(path, str(damage))
            except tf.errors.OpError as damage:
                return _unreadable(path, damage.message.rpartition("; ")[2])
    return None


def _unreadable(path: str, reason: str) -> SourceError:
    return SourceError(f"{path} cannot be read any more ({reason}): restore it, and repeat the command")


def _time_of_change(path: str) -> float:
    """Returns the time of a local file's last change; 0 where it is not known."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime
    return 0.0
