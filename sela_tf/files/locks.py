"""Locks of the kernel: of two processes that write one file, the second is told who holds it. They end with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator

from sela_tf.files.atomic import unfinished_of
from sela_tf.files.storage import storage_errors

LOCK = ".lock-here"
"""The name of the lock of a directory, in it."""
_MOST_WORDS = 2000


class HeldError(OSError):
    """A lock that another process holds.

    Args:
        path: the file that is locked, or that is written under the lock.
        holder: the process, by its number, host and command.
    """

    def __init__(self, path: pathlib.Path, holder: str):
        super().__init__(f"{path} is being written by {holder}")
        self.holder = holder


def take_lock(path: pathlib.Path) -> int:
    """Takes the lock of a file, which is made if it is missing, and stays; returns the descriptor whose closing ends the lock.

    The file is opened for writing, without which NFS has no exclusive locks; it says who holds it.

    Raises:
        HeldError: another process, or another part of this one, holds the lock.
        StorageError: the disk is full, or cannot be written for another reason.
        OSError: the file cannot be opened or locked.
    """
    descriptor = _locked(path)
    try:
        _say_who(descriptor, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def sole_writer(path: pathlib.Path, *others: pathlib.Path) -> Iterator[None]:
    """Holds the right to write the file or directory `path`, and removes what killed processes left unfinished of it.

    The lock is on a file of its own, which is gone at the end of the context: inside a directory that exists, beside anything else.
    Readers need none.

    Args:
        path: the file or directory.
        others: files and directories that are written with it, by whoever writes `path`.

    Raises:
        HeldError: another process is writing it.
        StorageError: the disk is full, or cannot be written for another reason.
        OSError: the lock cannot be taken.
    """
    lock = path / LOCK if path.is_dir() else path.with_name(f".lock-{path.name}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(lock))
        except HeldError as error:
            raise HeldError(path, error.holder) from error
        for each in (path, *others):
            remove(unfinished_of(each))
        yield


@contextlib.contextmanager
def held(lock: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a file that is there for this alone, and is gone at the end of the context.

    Raises:
        HeldError: another process holds it.
        StorageError: the disk is full, or cannot be written for another reason.
        OSError: the lock cannot be taken.
    """
    descriptor = _locked(lock)
    # Who held the lock until now has removed its file: then this is the lock of a file that nobody else finds.
    while not _is_open_as(lock, descriptor):
        os.close(descriptor)
        descriptor = _locked(lock)
    try:
        _say_who(descriptor, lock)
        yield
    finally:
        # It is removed while it is held: whoever has opened it already finds that out.
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def remove(path: pathlib.Path) -> None:
    """Removes a file or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _locked(path: pathlib.Path) -> int:
    """Opens a file, which is made if it is missing, and locks it; returns its descriptor.

    Raises:
        HeldError: another process, or another part of this one, holds the lock.
        OSError: the file cannot be opened or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, _MOST_WORDS, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise HeldError(path, holder or "another process") from error
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _say_who(descriptor: int, path: pathlib.Path) -> None:
    """Writes into the locked file who holds it.

    Raises:
        StorageError: the disk is full, or cannot be written for another reason.
    """
    words = f"process {os.getpid()} on {socket.gethostname()}: {shlex.join(sys.argv)}"
    with storage_errors(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, words.encode(errors="replace")[:_MOST_WORDS], 0)


def _is_open_as(path: pathlib.Path, descriptor: int) -> bool:
    """Returns True if the name still belongs to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
