"""Files of arrays, npz and npy, told apart by their content."""

from __future__ import annotations

import pathlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.files.archives import NPY_SIGNATURE, ObjectsError, TooLargeError, map_npy, names_in_npz, read_npz


class ArrayFile(NamedTuple):
    """The arrays of a file that were asked for."""

    arrays: dict[str, np.ndarray]
    """Arrays by their names."""
    names: tuple[str, ...]
    """Names of all arrays in the file; empty for an npy file, whose array has none."""


def read_arrays(path: pathlib.Path, wanted: Collection[str], *, alone: str, source: str, memory_limit: int) -> ArrayFile:
    """Reads arrays of a file. Arrays that are not wanted are not read, whatever they hold.

    Args:
        path: An npz or npy file, whatever its name is.
        wanted: Names of arrays of an npz file; those that it lacks are left out.
        alone: The name that the array of an npy file gets. It is mapped into memory.
        source: The name of the data set, for messages.
        memory_limit: Bytes that the wanted arrays of an npz file may take.

    Raises:
        SourceError: The file is neither, is cut or damaged, claims what it cannot hold, or a wanted array holds Python objects or takes more
            than `memory_limit`.
    """
    with path.open("rb") as file:
        is_npy = file.read(len(NPY_SIGNATURE)) == NPY_SIGNATURE
    try:
        if is_npy:
            return ArrayFile({alone: map_npy(path)}, ())
        names = names_in_npz(path)
        return ArrayFile(read_npz(path, names=[name for name in names if name in wanted], limit=memory_limit), names)
    except ObjectsError as error:
        raise SourceError(
            f"{source}: {str(path)!r} holds Python objects, which are never unpickled: save its arrays as numbers or text, as in "
            "np.asarray(values.tolist())"
        ) from error
    except TooLargeError as error:
        raise SourceError(
            f"{source}: the arrays of {str(path)!r} take {error.size / 2**30:.1f} GiB, `memory_limit={memory_limit / 2**30:g}` GiB: raise it"
        ) from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{source}: {str(path)!r} is not an npz or npy file, or not a whole one ({error})") from error


def lacks(path: pathlib.Path, found: ArrayFile, what: str, *, source: str) -> SourceError:
    """Returns the error of a file that has no array `what`."""
    has = ", ".join(found.names[:NAMES_SHOWN]) or "nothing"
    return SourceError(f"{source}: {str(path)!r} has no array {what} (it has {has})")
