"""Archives of NumPy arrays (npz), read whole and without running code from them."""

from __future__ import annotations

import os
import zipfile
import zlib

import numpy as np


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns all arrays of an npz file, by name. Pickled objects are refused.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not an npz file, or is cut or damaged.
    """
    if os.path.exists(path) and not zipfile.is_zipfile(path):
        raise ValueError("not an archive")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error
