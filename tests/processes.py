"""Helpers of the tests that kill: a command with all processes that it starts, whatever group they are in."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable

from fixtures import ROOT

ENDS_WITHIN = 120.0
"""Seconds in which a command has ended, with all its processes: some seconds, unless the machine is loaded. One that hangs does so for ever."""


class Tree:
    """A command of its own session. Its processes are known by an environment variable, which they inherit."""

    def __init__(self, module: str, *arguments: str, output: pathlib.Path):
        self._mark = f"SELA_TF_TEST_{uuid.uuid4().hex}"
        self._output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, self._mark: "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exception: object) -> None:
        for number in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()

    def alive(self) -> dict[int, str]:
        """The command lines of all processes that have not ended."""
        found = {}
        for directory in pathlib.Path("/proc").iterdir():
            # a process may end meanwhile; one that has ended but was not waited for has no environment
            with contextlib.suppress(OSError):
                if directory.name.isdecimal() and self._mark.encode() in (directory / "environ").read_bytes():
                    found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def wait_for(self, is_there: Callable[[str], bool]) -> int:
        """The first process whose command line is such."""
        while True:
            for number, line in self.alive().items():
                if is_there(line):
                    return number
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)

    def wait_for_words(self, words: str) -> None:
        """Waits until the command has said them."""
        while words not in self.said():
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return self._output.read_text()

    def ends(self) -> int:
        """The status of the command. All its processes have ended in time."""
        limit = time.monotonic() + ENDS_WITHIN
        status = self.process.wait(ENDS_WITHIN)
        while left := self.alive():
            assert time.monotonic() < limit, left
            time.sleep(0.1)
        return status
