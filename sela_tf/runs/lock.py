"""The lock of a run: two processes that write one run would destroy it."""

from __future__ import annotations

import pathlib

from sela_tf.files.locks import HeldError, take_lock
from sela_tf.runs.names import LOCK
from sela_tf.settings.fields import ConfigError


def lock_run(workdir: pathlib.Path) -> int:
    """Locks the directory of a run, and returns the file descriptor whose closing ends it. The lock is the kernel's and ends with the process.

    Args:
        workdir: the directory.

    Raises:
        ConfigError: another process holds the lock.
        OSError: the directory cannot be written.
    """
    try:
        return take_lock(workdir / LOCK)
    except HeldError as error:
        raise ConfigError(f"`workdir={workdir}` is in use by {error.holder}: stop that, or name another directory") from error
