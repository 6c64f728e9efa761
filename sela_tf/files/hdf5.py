"""HDF5 files of weights, checked before Keras opens them.

The HDF5 library follows links to other files, and a small file can claim arrays of any size. Some releases of Keras follow both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import h5py
import numpy as np

_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)
"""The filters that HDF5 and h5py bring along. Others are libraries that HDF5 would look for and load."""
_SMALL, _MOST_PACKED = 2**26, 32
"""Bytes that the arrays of a file may always claim, and the bytes that they may claim otherwise for each byte of the file: weights are noise,
which no compression makes much smaller."""


def check_weights_file(file: str | os.PathLike[str] | BinaryIO) -> None:
    """Checks that an HDF5 file holds finite numbers within itself alone, in as many bytes as it has.

    Args:
        file: The path of the file, or the open file.

    Raises:
        OSError: The file cannot be read, or is no HDF5 file.
        ValueError: An array lies in another file, has a size that the file cannot hold, is of another kind than numbers, or has values that are
            NaN or infinite; the message names it.
    """
    size = os.path.getsize(file) if isinstance(file, str | os.PathLike) else file.seek(0, os.SEEK_END)
    try:
        with h5py.File(file, "r") as opened:
            arrays = list(_arrays(opened))
            claimed = sum(map(_claimed, arrays))
            if claimed > max(_SMALL, _MOST_PACKED * size):
                raise ValueError(f"its arrays claim {claimed} bytes, and the file has {size}")
            for array in arrays:
                _check_finite(array)
    except (RuntimeError, KeyError, TypeError) as error:  # h5py's errors for damaged files
        raise ValueError(f"damaged ({error})") from error


def _arrays(file: h5py.File) -> Iterator[h5py.Dataset]:
    """Yields all arrays of a file.

    Raises:
        ValueError: There is a link to another place, or something that is neither a group nor an array.
    """
    groups, seen = [file["/"]], set()
    while groups:
        group = groups.pop()
        for name in group:
            link, path = group.get(name, getlink=True), f"{group.name.rstrip('/')}/{name}"
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{path!r} is a link to another place, and links are not followed")
            found = group[name]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(found, h5py.Group):
                groups.append(found)
            elif isinstance(found, h5py.Dataset):
                yield found
            else:
                raise ValueError(f"{path!r} is neither a group nor an array")


def _claimed(array: h5py.Dataset) -> int:
    """Returns the bytes that reading an array takes.

    Raises:
        ValueError: The array lies in another file, needs other libraries, is of another kind than numbers, or is not there.
    """
    if array.is_virtual or array.external:
        raise ValueError(f"{array.name!r} lies in other files, which are not read")
    if array.dtype.kind not in "fiub" and not _is_bfloat16(array):
        raise ValueError(f"{array.name!r} is {array.dtype}, not numbers")
    description = array.id.get_create_plist()
    filters = [description.get_filter(i)[0] for i in range(description.get_nfilters())]
    if not set(filters) <= set(_FILTERS):
        raise ValueError(f"{array.name!r} is packed by another filter than those of HDF5")
    if array.shape is None:
        return 0
    if array.chunks is None:
        if array.id.get_storage_size() != array.nbytes:
            raise ValueError(f"{array.name!r} claims {array.nbytes} bytes, and has {array.id.get_storage_size()}")
        return int(array.nbytes)
    return int(max(array.nbytes, array.dtype.itemsize * np.prod(array.chunks, dtype=object)))


def _is_bfloat16(array: h5py.Dataset) -> bool:
    """Returns True for an array of Keras' bfloat16, which HDF5 knows as pairs of bytes."""
    return array.dtype.kind == "V" and array.dtype.itemsize == 2


def _check_finite(array: h5py.Dataset) -> None:
    """Checks that all values of an array are finite.

    Raises:
        ValueError: Some are not.
    """
    if array.shape is None or array.dtype.kind in "iub":
        return
    values = array[()]
    if _is_bfloat16(array):
        # A bfloat16 is the upper half of a float32.
        values = (np.asarray(values).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    wrong = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
    if wrong:
        raise ValueError(f"{wrong} of the {np.size(values)} numbers of {array.name!r} are NaN or infinite")
