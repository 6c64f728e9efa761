"""The error of a disk that cannot be written, made of the errors of all libraries that write."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from types import FrameType

_MAKE_ROOM = "make room in {directory}"
_BRING_BACK = "bring the volume of {directory} back"
_WAYS_OUT = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "make {directory} writable",
    errno.EIO: "look after the disk of {directory}",
    errno.ENODEV: _BRING_BACK,
    errno.ENXIO: _BRING_BACK,
    errno.ESTALE: _BRING_BACK,
    errno.ENOTCONN: _BRING_BACK,
}
"""The ways out, by the number of the system's error."""
_IN_WORDS = {os.strerror(code): code for code in _WAYS_OUT}


class StorageError(OSError):
    """A file that could not be written: a full disk, a quota, a limit, a volume that is read-only or gone.

    The message names the file, what is safe, and how to go on.
    """

    exit_status = 6
    """The exit status of a command that ends with this error."""

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str], *, written: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Raises a StorageError where the context, in which a file is written, ends with an error of its disk.

    Args:
        path: the file or directory. It is as it was.
        written: the path that is written first, if it is another.

    Raises:
        StorageError: the disk is full, or cannot be written for another reason.
    """
    try:
        yield
    except Exception as error:
        found = _storage_error(error, path, written)
        if found is None:
            raise
        _let_go(error)
        raise found from error


def _storage_error(error: Exception, path: str | os.PathLike[str], written: str | os.PathLike[str] | None) -> StorageError | None:
    """Returns the error of a file that could not be written, made of the one that ended its writing; None where that has another cause."""
    if isinstance(error, StorageError):
        return None
    code = storage_errno(error)
    # An error about this very file, whatever it is, is one of its disk.
    if code is None and isinstance(error, OSError) and written is not None and _is_about(error, written):
        code = error.errno
    if code is None:
        return None
    directory = os.path.dirname(os.fspath(path)) or os.curdir
    kept = "what was there before is as it was" if os.path.lexists(path) else "no part of it is left there"
    way_out = _WAYS_OUT.get(code, "see to {directory}").format(directory=directory)
    made = StorageError(f"{os.fspath(path)} cannot be written ({os.strerror(code)}): {kept}; {way_out}, and repeat the command")
    made.errno, made.strerror = code, os.strerror(code)
    return made


def _is_about(error: OSError, path: str | os.PathLike[str]) -> bool:
    """Returns True for an error that names the path, or one below it."""
    return error.filename is not None and os.fsdecode(error.filename).startswith(os.fspath(path))


def storage_errno(error: BaseException) -> int | None:
    """Returns the number of the system's error if it is one of storage, such as a full disk; None for every other exception.

    Python and pyarrow raise an OSError with the number. TensorFlow raises an OpError, and HDF5 an OSError or a RuntimeError, with the system's
    words in its text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _WAYS_OUT else None
    # Errors of data and of settings, which are ValueErrors, may quote such words.
    if isinstance(error, ValueError):
        return None
    text = str(error)
    return next((code for words, code in _IN_WORDS.items() if words in text), None)


def _let_go(error: BaseException) -> None:
    """Frees what the frames of an exception hold: files of libraries that are half written, and whose destructors fail in their turn.

    Python prints such failures ("Exception ignored in …"), which say no more than the exception; here they are silent.
    """
    with _silent_destructors():
        behind: BaseException | None = error
        while behind is not None:
            for frame, _ in traceback.walk_tb(behind.__traceback__):
                _clear(frame)
            behind = behind.__cause__ or behind.__context__
        gc.collect()


def _clear(frame: FrameType | None) -> None:
    """Forgets the variables of a frame that is over, and of those that called it: Keras leaves its own frames out of a traceback."""
    while frame is not None:
        try:
            frame.clear()
        except RuntimeError:  # This one, and whoever called it, still runs.
            return
        frame = frame.f_back


@contextlib.contextmanager
def _silent_destructors() -> Iterator[None]:
    before = sys.unraisablehook, sys.excepthook
    # Cython, in which h5py is written, prints by the hook of uncaught exceptions, too.
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = before
