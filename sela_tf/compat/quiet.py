"""Suppression of the messages that libraries write to stderr although nothing is wrong."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def stderr_kept_back() -> Iterator[TextIO]:
    """Holds back what this process and its children write to stderr, and writes it after all if there is an error.

    Yields:
        The real stderr, for lines that must be seen.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as noise, open(before, "w", closefd=False) as real:
        os.dup2(noise.fileno(), 2)
        try:
            yield real
        except BaseException:
            noise.seek(0)
            os.write(before, noise.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
