"""What libraries write to stderr when all is well, kept back."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def stderr_kept_back() -> Iterator[TextIO]:
    """Of this process and its children; it comes out if there is an error. Yields the real stderr, for what is to be seen."""
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
