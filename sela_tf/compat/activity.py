"""A line on a terminal about work that takes long."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from tqdm import tqdm

DELAY_SECONDS, _INTERVAL_SECONDS = 2.0, 0.5


class Activity:
    """A context in which work is done; after two seconds, a line on the terminal says what, and for how long.

    The line is rewritten in place, and removed at the end. Where standard error is no terminal, nothing is printed.

    Args:
        what: the work, such as "evaluation".
        total: number of its parts, where there are several; see `begin`.
    """

    def __init__(self, what: str, *, total: int | None = None):
        self._what, self._total, self._begun = what, total, 0
        self._part = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True) if sys.stderr.isatty() else None

    def begin(self, part: str) -> None:
        """Notes that the next part of the work begins."""
        self._part, self._begun = part, self._begun + 1

    def __enter__(self) -> Activity:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        """Shows the line from two seconds on, until the work is done."""
        if self._stop.wait(DELAY_SECONDS):
            return
        # tqdm moves the line away while other lines are printed by `tqdm.write`. With a delay it shows no line before there are words.
        with tqdm(file=sys.stderr, leave=False, bar_format="{desc}, {elapsed}", dynamic_ncols=True, delay=1e-3) as line:
            line.start_t -= DELAY_SECONDS
            while True:
                line.set_description_str(self._words())
                if self._stop.wait(_INTERVAL_SECONDS):
                    return

    def _words(self) -> str:
        """Returns the work and its part in words, such as "evaluation, 2 of 4: untrained network"."""
        number = f", {self._begun} of {self._total}" if self._total and self._begun else ""
        return f"{self._what}{number}{': ' * bool(self._part)}{self._part}"
