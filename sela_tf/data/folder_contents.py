"""The names of the files below a directory, on any file system that TensorFlow knows."""

from __future__ import annotations

import os
from typing import NamedTuple

import tensorflow as tf

from sela_tf.data.errors import NAMES_SHOWN, SourceError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
"""Endings of the names of image files."""
MACHINE_MADE = frozenset(
    each.lower()
    for each in (
        "@eaDir", "@__thumb", "@Recycle", "@Recently-Snapshot", "@tmp", "#recycle", "#snapshot", "__MACOSX", "$RECYCLE.BIN", "RECYCLER",
        "System Volume Information", "lost+found", "Thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__",
    )
)  # fmt: skip
"""Names, in lower case, of directories and files that storage devices and systems make by themselves, with thumbnails or deleted images.

Those that begin with a dot, such as .thumbnails, are hidden and left out as all hidden ones are."""


class FolderContents(NamedTuple):
    """The files below a directory."""

    names: list[str]
    """Names of the files, relative to the directory and sorted by `order_of`."""
    machine_made: list[str]
    """Names of the `MACHINE_MADE` directories and files that were left out; the directories were not entered."""


def walk(root: str, *, name: str) -> list[str]:
    """Returns the names of all files below a directory but hidden and machine-made ones, see `folder_contents`."""
    return folder_contents(root, name=name).names


def folder_contents(root: str, *, name: str, with_machine_made: bool = False) -> FolderContents:
    """Returns the names of all files below a directory.

    Hidden files and hidden directories (those whose name begins with a dot) are left out. Links are followed; each directory is
    visited once.

    Args:
        root: A directory on any file system that TensorFlow knows, such as gs://BUCKET/DIR.
        name: The name of the data set, for messages.
        with_machine_made: Leaves only hidden files out, as older runs did.

    Raises:
        SourceError: A directory cannot be read, or the name of a file is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"{name}: {error.filename!r} cannot be read: {error.strerror}") from error

    names, machine_made, visited = [], [], set()
    remote = "://" in root
    found = tf.io.gfile.walk(root) if remote else os.walk(root, followlinks=True, onerror=refuse)
    for directory, directories, files in found:
        real = directory if remote else os.path.realpath(directory)
        below = directory[len(root) :].strip("/")
        before = f"{below}/" if below else ""
        entered = [] if real in visited else sorted(each for each in directories if not each.startswith("."))
        files = [] if real in visited else [each for each in files if not each.startswith(".")]
        if not with_machine_made:
            machine_made += [before + each for each in [*entered, *files] if _is_machine_made(each)]
            entered, files = ([each for each in part if not _is_machine_made(each)] for part in (entered, files))
        # os.walk enters the directories that are left in its list.
        directories[:] = entered
        names += [each for each in (before + file for file in files) if remote or _is_file(os.path.join(root, each))]
        visited.add(real)
    # Python decodes bytes that are not UTF-8 to lone surrogates, which no report and no file of labels can hold.
    odd = [ascii(each) for each in names if any("\ud800" <= character <= "\udfff" for character in f"{root}/{each}")]
    if odd:
        raise SourceError(f"{name}: {len(odd)} file names are not UTF-8: {', '.join(odd[:NAMES_SHOWN])}. Rename them")
    return FolderContents(sorted(names, key=order_of), machine_made)


def _is_machine_made(name: str) -> bool:
    """Returns True for a name among `MACHINE_MADE`; some file systems give directories with a slash at the end."""
    return name.rstrip("/").lower() in MACHINE_MADE


def _is_file(path: str) -> bool:
    """Returns True for a file, and for a broken link that is named like an image, so that the link is reported."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path) and path.lower().endswith(SUFFIXES))


def order_of(name: str) -> tuple[str, ...]:
    """Returns the key by which names are sorted: the parts of the path, so that a directory's files stay together."""
    return tuple(name.split("/"))
