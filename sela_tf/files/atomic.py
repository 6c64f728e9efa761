"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
    """The file is there whole, or as before."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text(text)
    os.replace(unfinished, path)
