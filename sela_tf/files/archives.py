"""Files of NumPy arrays (npz, npy): what they claim to hold is checked before anything is unpacked, and no code from them is run.

The readers of NumPy believe the header: a file of 80 bytes that claims 10^12 rows, or a zip file of a megabyte that unpacks to a
gigabyte, takes the memory before it is refused.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

NPY_SIGNATURE = b"\x93NUMPY"
"""The first bytes of an npy file, which holds a single array."""
MOST_DEFLATED = 1032
"""The most bytes that a compressed byte can stand for in zip and gzip files."""
_SMALL = 2**30
"""Bytes that the arrays of a file may always take, where no setting limits them."""
_HEADER_BYTES = 16384
"""Bytes within which a header ends. NumPy reads none of more than 10000 characters."""
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGE = (
    EOFError, KeyError, TypeError, AttributeError, IndexError, SyntaxError, tokenize.TokenError, OverflowError, RuntimeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors of NumPy and of the zip library for files that are cut, damaged or made up."""


class ObjectsError(ValueError):
    """An array of Python objects, which would have to be unpickled."""


class TooLargeError(ValueError):
    """Arrays that take more bytes than they may."""

    def __init__(self, size: int, limit: int):
        super().__init__(f"its arrays take {size / 2**30:.1f} GiB, and at most {limit / 2**30:.1f} GiB are read")
        self.size = size
        """Bytes that they take."""


class ArrayHeader(NamedTuple):
    """The header of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int
    """Bytes of the values."""


def read_npz(
    file: str | os.PathLike[str] | BinaryIO, *, names: Collection[str] | None = None, limit: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file, by name.

    Args:
        file: The file, or its path.
        names: Names of the arrays to read; None for all.
        limit: Bytes that these arrays may take; None for the size of the file, or 1 GiB if that is more.

    Raises:
        OSError: The file cannot be read.
        ObjectsError: An array holds Python objects.
        TooLargeError: The arrays take more than `limit`.
        ValueError: The file is not an npz file, is cut or damaged, or claims what it cannot hold.
    """
    with _archive(file) as (archive, size):
        members = _members(archive)
        wanted = {name: members[name] for name in (members if names is None else names)}
        check_sizes(list(wanted.values()), size)
        total = sum(_header(archive, member).size for member in wanted.values())
        limit = max(size, _SMALL) if limit is None else limit
        if total > limit:
            raise TooLargeError(total, limit)
        return {name: _values(archive, member) for name, member in wanted.items()}


def map_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the array of an npy file, mapped into memory.

    Raises:
        OSError: The file cannot be read.
        ObjectsError: The array holds Python objects.
        ValueError: The file is not an npy file, or does not hold what its header says.
    """
    with _damage_named(), open(path, "rb") as file:
        _checked_header(file, os.fstat(file.fileno()).st_size)
        return np.load(path, mmap_mode="r", allow_pickle=False)


def write_npz(file: str | os.PathLike[str] | BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays into an npz file, not compressed. A path without the ending .npz gets it.

    Raises:
        OSError: The file cannot be written.
    """
    # By its types, NumPy takes any name of an array for one of its own arguments.
    named: Any = arrays
    np.savez(file, **named)


def names_in_npz(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of the arrays of an npz file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not an npz file, or is cut or damaged.
    """
    with _archive(path) as (archive, _):
        return tuple(_members(archive))


def check_sizes(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Checks that members of a zip file can be unpacked to what its directory says, before they are.

    Args:
        members: The members that will be read.
        size: The size of the file in bytes.

    Raises:
        ValueError: A member is encrypted, packed in an unusual way, or claims more bytes than it can hold.
    """
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!r} is encrypted, or packed otherwise than by deflate")
        ratio = 1 if member.compress_type == zipfile.ZIP_STORED else MOST_DEFLATED
        if member.file_size > ratio * member.compress_size:
            raise ValueError(f"{member.filename!r} claims {member.file_size} bytes, and {member.compress_size} bytes hold it")
    # Members that share their bytes would unpack one part of the file many times.
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its members claim more bytes than the file has")


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Makes a ValueError of the many errors of a damaged file."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _archive(file: str | os.PathLike[str] | BinaryIO) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Yields an open zip file, and its size in bytes; errors of a damaged file become ValueErrors."""
    with _damage_named(), contextlib.ExitStack() as stack:
        opened = stack.enter_context(open(file, "rb")) if isinstance(file, str | os.PathLike) else file
        if not zipfile.is_zipfile(opened):
            raise ValueError("not an archive")
        size = opened.seek(0, os.SEEK_END)
        yield stack.enter_context(zipfile.ZipFile(opened)), size


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the members of an npz file by the names of their arrays.

    Raises:
        ValueError: Two have one name, or a name leads out of the archive.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        path = pathlib.PurePosixPath(name.replace("\\", "/"))
        if name in members or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{member.filename!r} is there twice, or is a path to another place")
        members[name] = member
    return members


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    """Returns the header of an array in an archive. No more than the first bytes are unpacked."""
    with archive.open(member) as file:
        return _checked_header(file, member.file_size)


def _checked_header(file: IO[bytes], size: int) -> ArrayHeader:
    """Returns the header of the array in an npy file of `size` bytes, of which no more than the first bytes are read.

    Raises:
        ObjectsError: The array holds Python objects.
        ValueError: It has a shape or a type that no file of this size holds.
    """
    start = io.BytesIO(file.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    if version not in _HEADER_READERS:
        raise ValueError(f"an array of npy format {version[0]}.{version[1]}")
    try:
        shape, _, dtype = _HEADER_READERS[version](start)
    except MemoryError as error:  # Python's own of a text that is nested too deeply.
        raise ValueError("a header that cannot be parsed") from error
    if dtype.hasobject:
        raise ObjectsError("an array of Python objects")
    values = size - start.tell()
    words = f"{dtype} [{', '.join(map(str, shape))}]"
    if dtype.kind == "V" or any(side < 0 for side in shape) or math.prod(map(float, filter(None, shape))) >= 2**62:
        raise ValueError(f"an array {words}, which cannot be")
    if math.prod(shape) * dtype.itemsize != values or (dtype.itemsize == 0 and 0 not in shape):
        raise ValueError(f"an array that claims to be {words}, and has {values} bytes")
    return ArrayHeader(shape, dtype, values)


def _values(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Returns an array of an archive, whose header was checked."""
    with archive.open(member) as file:
        values = np.lib.format.read_array(file, allow_pickle=False)
        # The checksum of a member is compared at its end.
        file.read(1)
    return values
