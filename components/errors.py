"""The error of a full disk, as a component ends with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sela_tf.files.storage import StorageError, storage_errno


@contextlib.contextmanager
def storage_errors(directory: str) -> Iterator[None]:
    """Raises a StorageError about a directory where the context, which fills another one first, ends with an error of the disk.

    Args:
        directory: The directory that is written in the context, for the message.

    Raises:
        StorageError: The disk is full, or cannot be written for another reason.
    """
    try:
        yield
    except Exception as error:
        number = storage_errno(error)
        if number is None:
            raise
        raise StorageError(
            f"{directory} cannot be written ({os.strerror(number)}): nothing was written, and what was there before is as it was; make "
            f"room in {os.path.dirname(directory)}, and repeat the command"
        ) from error
