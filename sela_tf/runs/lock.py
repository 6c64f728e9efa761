"""The lock of a run: two processes that write one run would destroy it."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shlex
import socket
import sys

from sela_tf.runs.names import LOCK
from sela_tf.settings.fields import ConfigError


def lock_run(workdir: pathlib.Path) -> int:
    """Locks the directory of a run, and returns the file descriptor whose closing ends it. The lock is the kernel's and ends with the process.

    It is on a file opened for writing, without which NFS has no exclusive locks; the file says who holds it.

    Args:
        workdir: the directory.

    Raises:
        ConfigError: another process holds the lock.
        OSError: the directory cannot be written.
    """
    descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 2000, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise ConfigError(
            f"`workdir={workdir}` is in use by {holder or 'another process'}: stop that, or name another directory"
        ) from error
    os.ftruncate(descriptor, 0)
    words = f"process {os.getpid()} on {socket.gethostname()}: {shlex.join(sys.argv)}"
    os.pwrite(descriptor, words.encode(errors="replace")[:2000], 0)
    return descriptor
