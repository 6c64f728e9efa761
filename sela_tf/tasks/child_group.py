"""A child that leads a process group of its own. The group ends with the parent, however the parent ends.

The child's standard input is a pipe that only the parent can write to. When the parent is gone, by SIGKILL too, the kernel closes the pipe; the
child notices, and ends its group. So nothing of it is left, whatever the libraries of the child do with signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

_DYING_MS = 5000
"""Milliseconds that killed processes may take to be gone; one that waits for a disk takes longer."""


class ChildGroup:
    """A module that runs as a command. All processes that it starts, and they start, are in its process group.

    Args:
        module: The module. It calls `end_with_parent` first.
        stderr: The file that gets its errors; None for this process' own.
        environment: Environment variables that are different for it.
    """

    def __init__(self, module: str, *, stderr: IO[bytes] | None = None, **environment: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            process_group=0,
            env={**os.environ, **environment},
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise TypeError("a child without pipes")
        self._stdin = self._process.stdin
        self.lines: IO[str] = self._process.stdout
        """The lines that the child prints."""

    def tell(self, message: Any) -> None:
        """Sends a message to the child, unless it has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(message), file=self._stdin, flush=True)

    def terminate(self) -> None:
        """Sends SIGTERM to all processes of the group."""
        self._signal(signal.SIGTERM)

    def end(self) -> int:
        """Ends all processes of the group that have not ended yet, and returns the status of the child."""
        self._signal(signal.SIGKILL)
        # All of them hold the other end of the pipe.
        pipe = select.poll()
        pipe.register(self._stdin.fileno(), 0)
        pipe.poll(_DYING_MS)
        status = self._process.wait()
        for each in (self._stdin, self.lines):
            with contextlib.suppress(BrokenPipeError):
                each.close()
        return status

    def _signal(self, number: signal.Signals) -> None:
        # Until the child has been waited for, its number is that of no other group.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def end_with_parent() -> None:
    """Makes the group of this process, the child of a `ChildGroup`, end when the parent is gone."""

    def watch() -> None:
        # No event is asked for, because the end of a pipe is told in any case.
        pipe = select.poll()
        pipe.register(0, 0)
        pipe.poll()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def messages() -> Iterator[Any]:
    """Yields the messages of the parent as they come."""
    for line in sys.stdin:
        yield json.loads(line)
