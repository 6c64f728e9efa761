"""The error of a disk that cannot be written."""

from __future__ import annotations


class StorageError(OSError):
    """A file that could not be written: a full disk, a quota, a limit, a volume that is read-only or gone.

    The message names the file, what is safe, and how to go on.
    """

    exit_status = 6
    """The exit status of a command that ends with this error."""
