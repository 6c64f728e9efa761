"""Whole writes on any file system that TensorFlow knows, such as gs://BUCKET/DIR.

They stand apart from `sela_tf.files.atomic`, because the operating system's rename knows local paths only. TensorFlow's rename is atomic on
a local disk; on a bucket it copies the finished file and removes the unfinished one.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

import tensorflow as tf

from sela_tf.files.atomic import to_disk
from sela_tf.files.storage import storage_errors


@contextlib.contextmanager
def whole_remote_file(path: str, *, unfinished: str | None = None) -> Iterator[str]:
    """Yields the path of an unfinished file, which takes the name `path` at the end of the context; an exception removes it.

    Args:
        path: The file to write or to replace: a local path or a URL.
        unfinished: The path to write first, in the same directory; `.unfinished-NAME` by default.

    Raises:
        StorageError: the disk is full, or cannot be written for another reason.
    """
    directory, slash, name = path.rpartition("/")
    unfinished = f"{directory}{slash}.unfinished-{name}" if unfinished is None else unfinished
    with storage_errors(path):
        try:
            yield unfinished
            if os.path.exists(unfinished):
                to_disk(pathlib.Path(unfinished))
            tf.io.gfile.rename(unfinished, path, overwrite=True)
        except BaseException:
            with contextlib.suppress(tf.errors.OpError):
                tf.io.gfile.remove(unfinished)
            raise
