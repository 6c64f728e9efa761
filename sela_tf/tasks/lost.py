"""The error of a lost process, and how it ended in words."""

from __future__ import annotations

import signal


class WorkerLostError(RuntimeError):
    """A process that worked for a command has ended before its work was done.

    The message says how it ended, what is safe, and how to go on.
    """

    exit_status = 5
    """The exit status of a command that ends with this error."""


def signal_of(status: int) -> signal.Signals | None:
    """Returns the signal that ended a process, by the status that it left, or that a shell passes on as 128 + n; None if it ended by itself."""
    number = -status if status < 0 else status - 128
    return signal.Signals(number) if number in set(signal.Signals) else None


def how_it_ended(status: int) -> str:
    """Returns the way in which a process has ended, as words that follow "was ended" or "has"."""
    ended_by = signal_of(status)
    if ended_by is None:
        return f"ended with status {status}"
    by_kernel = ", as the kernel does where memory runs out" if ended_by == signal.SIGKILL else ""
    return f"was ended by {ended_by.name}{by_kernel}"
