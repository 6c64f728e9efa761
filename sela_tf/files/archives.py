"""Archives of NumPy arrays (npz), read whole and without running code from them."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import numpy as np

NPY_SIGNATURE = b"\x93NUMPY"
"""The first bytes of an npy file, which holds a single array."""


def read_npz(path: str | os.PathLike[str], *, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file, by name. Pickled objects are refused.

    Args:
        path: The file.
        names: Names of the arrays to read; None for all.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not an npz file, or is cut or damaged.
    """
    if os.path.exists(path) and not zipfile.is_zipfile(path):
        raise ValueError("not an archive")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except (EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error


def write_npz(file: str | os.PathLike[str] | BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays into an npz file, not compressed. A path without the ending .npz gets it.

    Raises:
        OSError: the file cannot be written.
    """
    # By its types, NumPy takes any name of an array for one of its own arguments.
    named: Any = arrays
    np.savez(file, **named)


def names_in_npz(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of the arrays of an npz file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not an npz file, or is cut or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
