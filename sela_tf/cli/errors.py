"""The errors that a user can do something about, each with its exit status; any other is a mistake of the program."""

from __future__ import annotations

import os
import tempfile

from sela_tf.data.errors import SourceError
from sela_tf.files.storage import StorageError, storage_errno
from sela_tf.settings.fields import ConfigError


def exit_status(error: Exception) -> int:
    """Returns the exit status of a command that ends with `error`: that of its class; 1 for a mistake of the program."""
    status: int = getattr(error, "exit_status", 1)
    return status


def told_to_user(error: Exception) -> Exception | None:
    """Returns the error to tell: `error` itself if its class has an exit status, else the one behind it; None for a mistake of the program.

    Behind an error of Python or TensorFlow may be a full disk, an image file that was removed or damaged while it is needed, a file that
    cannot be read, or too little memory of a device.
    """
    import tensorflow as tf

    from sela_tf.data.broken_files import source_error_of

    if hasattr(error, "exit_status"):
        return error
    if (found := source_error_of(error)) is not None:
        return found
    if (code := storage_errno(error)) is not None:
        where = getattr(error, "filename", None) or f"the directories that the command names, and {tempfile.gettempdir()}"
        return StorageError(
            f"a file cannot be written or read ({os.strerror(code)}): look at the disk of {where}, and repeat the command"
        )
    if isinstance(error, OSError):
        return SourceError(str(error))
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return ConfigError(f"the memory does not suffice: choose a smaller `batch_size` ({error.message.splitlines()[0]})")
    return None
