"""Lines that a callback prints for the person watching."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def say(line: str, *, verbose: int | None, params: dict[str, Any] | None) -> None:
    """Prints a line, above a progress bar if there is one.

    Args:
        line: the line.
        verbose: the setting of the callback: 0 for silence, None for the `verbose` of `fit`.
        params: the parameters that `fit` gave the callback; without `verbose` among them, lines are printed.
    """
    if verbose if verbose is not None else (params or {}).get("verbose", 1):
        tqdm.write(line)
        sys.stdout.flush()
