"""Ctrl-C and SIGTERM: the first one lets a training save its state, the second one ends the process at once."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StoppedBySignal(Exception):  # noqa: N818 - it is no error
    """A command ended early because of a signal, with its state saved; the same command continues.

    Args:
        message: the signal, and where the command was.
        signal_number: the number of the signal.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised wherever the program was, as Ctrl-C is."""


@dataclasses.dataclass
class Stop:
    """The signal that asked training to stop, once it has come."""

    signal_number: int | None = None


@contextlib.contextmanager
def signals_noted() -> Iterator[Stop]:
    """Notes the first SIGINT or SIGTERM, so that the training loop stops after its step; the second acts as it did before.

    Python hands signals to its main thread alone. In another thread none is noted, and the program's own handlers stay.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        print(f"\n{signal.Signals(number).name}: saving after this step; once more stops at once", file=sys.stderr, flush=True)
        put_back()

    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
        before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        put_back()


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise `Terminated`, so that it ends a command as Ctrl-C does."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
