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


class PassAborted(BaseException):
    """Ends a label pass in the middle, of which nothing was written.

    Args:
        signal_number: the number of the signal.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


@dataclasses.dataclass
class Stop:
    """The requests that signals have made of a training."""

    signal_number: int | None = None
    """The signal that asked it to stop, once it has come."""
    wants_save: bool = False
    """True if SIGUSR1 has come: save, and go on."""
    in_pass: bool = False
    """True while a label pass is computed, which may end at any place."""

    @contextlib.contextmanager
    def ends_pass(self) -> Iterator[None]:
        """Lets a signal end what is done in the context, by `PassAborted`."""
        self.in_pass = True
        try:
            if self.signal_number is not None:
                raise PassAborted(self.signal_number)
            yield
        except Exception as error:
            # Raised within a function that TensorFlow calls, it comes as an error of TensorFlow's.
            if self.signal_number is not None:
                raise PassAborted(self.signal_number) from error
            raise
        finally:
            self.in_pass = False


@contextlib.contextmanager
def signals_noted() -> Iterator[Stop]:
    """Notes the first SIGINT or SIGTERM, so that the training loop stops after its step, or a label pass at once; the second acts as it did
    before. SIGUSR1 makes the loop save and go on.

    Python hands signals to its main thread alone. In another thread none is noted, and the program's own handlers stay.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        when = "now" if stop.in_pass else "after this step"
        print(f"\n{signal.Signals(number).name}: saving {when}; once more stops at once", file=sys.stderr, flush=True)
        put_back()
        if stop.in_pass:
            raise PassAborted(number)

    def note_save(number: int, frame: FrameType | None) -> None:
        stop.wants_save = True

    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
        before[number] = signal.signal(number, note)
    if in_main_thread:
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, note_save)
    try:
        yield stop
    finally:
        put_back()


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise `Terminated`, so that it ends a command as Ctrl-C does."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
