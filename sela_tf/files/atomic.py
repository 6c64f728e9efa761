"""Atomic writes on a local disk: a file or directory is written under another name and then renamed.

Readers, and a process that is killed, see the old content or the new, never a part of it; nor does a machine that loses power, as
content reaches the disk before its name does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator

from sela_tf.files.storage import storage_errors

_UNFINISHED = ".unfinished-"
_ABANDONED = 86400.0
"""Seconds after which nobody writes to an unfinished file any more."""


@contextlib.contextmanager
def whole_file(path: pathlib.Path, *, unfinished: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Yields the path of an unfinished file, which takes the name `path` at the end of the context; an exception removes it.

    A killed process leaves the unfinished file behind, and `path` as it was.

    Args:
        path: The file to write or to replace.
        unfinished: The path to write first, in the same directory; `.unfinished-NAME` by default. Processes that may write the same
            file at once need names of their own.

    Raises:
        StorageError: the disk is full, or cannot be written for another reason.
    """
    unfinished = unfinished_of(path) if unfinished is None else unfinished
    with storage_errors(path, written=unfinished):
        try:
            yield unfinished
            to_disk(unfinished)
            os.replace(unfinished, path)
        except BaseException:
            # A directory that cannot be written must not hide the error that says so.
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
    to_disk(path.parent)


def unfinished_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the path that a file or directory has until it is whole."""
    return path.with_name(f"{_UNFINISHED}{path.name}")


def unfinished_beside(path: pathlib.Path) -> pathlib.Path:
    """Returns a name for `whole_file` that no other process has, and removes unfinished files that killed ones left here a day ago or earlier."""
    for left in path.parent.glob(f"*{_UNFINISHED}*"):
        # Other processes may write, or remove the same.
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    return path.with_name(f"{path.name}{_UNFINISHED}{uuid.uuid4().hex}")


@contextlib.contextmanager
def whole_directory(path: pathlib.Path, *, unfinished: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Yields a new, unfinished directory, which takes the name `path` at the end of the context; an exception removes it.

    A killed process leaves the unfinished directory behind.

    Args:
        path: The directory to make. It must not exist when the context ends.
        unfinished: The directory to fill first, beside `path`; `.unfinished-NAME` by default.

    Raises:
        FileExistsError: the unfinished directory is there, or `path` is.
        StorageError: the disk is full, or cannot be written for another reason.
    """
    unfinished = unfinished_of(path) if unfinished is None else unfinished
    with storage_errors(path):
        unfinished.mkdir()
        try:
            yield unfinished
            for directory, _, names in os.walk(unfinished):
                for name in names:
                    to_disk(pathlib.Path(directory, name))
                to_disk(pathlib.Path(directory))
            os.rename(unfinished, path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    to_disk(path.parent)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes `text` into the file `path`, whole or not at all.

    Raises:
        StorageError: the disk is full, or cannot be written for another reason.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def to_disk(path: pathlib.Path) -> None:
    """Waits until the content of a file, or the names in a directory, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of networks write directories by themselves, and know no such call for them.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
