"""Listings of folders: the results of reading and decoding each file, kept on disk, so that only new or changed files are read again.

The listing of a folder is one Parquet file in the directory `cache_dir`, with a row for each file. It is a cache only: if it is missing,
damaged or made by another version of TensorFlow (which may decode differently), every file is read again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from sela_tf.data.decoding import ImageInfo, UnreadImageError, check_image
from sela_tf.data.folder_contents import SUFFIXES
from sela_tf.data.headers import BadImageError, UnreadableFormatError, image_kind, read_header, to_convert
from sela_tf.files.atomic import unfinished_beside, whole_file

FORMAT = 3
"""The version of the listings' format. A listing of another version is ignored."""
_SCHEMA = pa.schema(
    [
        ("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string()), ("kind", pa.string()),
        ("height", pa.int32()), ("width", pa.int32()), ("channels", pa.int8()), ("pixels_sha256", pa.string()), ("orientation", pa.int8()),
        ("largest", pa.int32()), ("problem", pa.string()), ("is_foreign", pa.bool_()),
    ]
)  # fmt: skip
_MADE_BY = b"sela_tf.listing"
_START_BYTES = 4096
"""Bytes read first; most image headers end within them. The size of a jpeg comes after the camera's data, which may be longer."""


class FileInfo(NamedTuple):
    """The result of reading one file."""

    path: str
    """The path or URL of the file."""
    name: str
    """The path relative to the root of the folder, with forward slashes."""
    decoded: ImageInfo | None = None
    """Format and size of an image that decodes, though perhaps wrongly; None for any other file."""
    problem: str = ""
    """The reason why the image is not read; "" if there is none."""
    is_foreign: bool = False
    """True if the image is whole, and of a kind that is not read."""
    size: int = -1
    """The size in bytes; -1 if the file cannot be read."""
    mtime_ns: int = 0
    """The time of the last change, nanoseconds since 1970; 0 if the file system has no times."""
    sha256: str = ""
    """The SHA-256 digest of an image file; "" for other files, which are not read to their end."""

    @property
    def info(self) -> ImageInfo | None:
        """Format and size of an image that is read; None for any other file."""
        return None if self.problem else self.decoded

    def before_rules(self) -> FileInfo:
        """Returns the result as runs see it that are older than the pixel rules."""
        if self.decoded is None:
            return self
        if self.decoded.kind == "webp":
            return self._replace(decoded=None, problem=str(to_convert("webp")), is_foreign=True)
        return self._replace(decoded=self.decoded.before_rules(), problem="", is_foreign=False)


def inspect_file(root: str, name: str) -> FileInfo:
    """Reads the file `name` below `root` and decodes it if it is an image."""
    return _inspect(root, name, decode=True)


def inspect_header(root: str, name: str) -> FileInfo:
    """Reads the header of the file `name` below `root`. The result has the image's size, 0 channels (not known) and no digests."""
    return _inspect(root, name, decode=False)


def _inspect(root: str, name: str, *, decode: bool) -> FileInfo:
    path = path_of(root, name)
    try:
        # The time is read before the bytes, so that a file which is written meanwhile is read again next time.
        size, mtime_ns = size_and_time(path)
        file = FileInfo(path, name, size=size, mtime_ns=mtime_ns)
        with tf.io.gfile.GFile(path, "rb") as opened:
            data = opened.read(_START_BYTES)
            if image_kind(data) is None:  # The rest of the file is not needed.
                is_called_image = name.lower().endswith(SUFFIXES)
                return file._replace(problem=("no image" if data else "an empty file") if is_called_image else "")
            if decode:
                data += opened.read()
                file = file._replace(sha256=hashlib.sha256(data).hexdigest())
                return file._replace(decoded=check_image(data))
            try:
                header = read_header(data)
            except BadImageError:  # The header may be longer than the first bytes.
                header = read_header(data + opened.read())
            seen = ImageInfo(header.kind, header.height, header.width, channels=0, orientation=header.orientation)
            return file._replace(decoded=seen)
    except BadImageError as error:
        decoded = error.info if isinstance(error, UnreadImageError) else None
        return file._replace(decoded=decoded, problem=str(error), is_foreign=isinstance(error, UnreadableFormatError))
    except tf.errors.OpError as error:
        return FileInfo(path, name, problem=f"cannot be read: {error.message.rpartition('; ')[2]}")


def path_of(root: str, name: str) -> str:
    """Returns the path of the file `name` below `root`, which may be a URL."""
    return f"{root.rstrip('/')}/{name}"


def size_and_time(path: str) -> tuple[int, int]:
    """Returns the size in bytes and the time of the last change in nanoseconds, by which a change of a file is noticed.

    Raises:
        tf.errors.OpError: There is no such file.
    """
    if "://" not in path:
        # TensorFlow knows whole seconds only. Where this fails, TensorFlow's error is raised below.
        with contextlib.suppress(OSError):
            found = os.stat(path)
            return found.st_size, found.st_mtime_ns
    found = tf.io.gfile.stat(path)
    return found.length, found.mtime_nsec


def list_folder(
    root: str, names: Sequence[str], *, cache_dir: str = "", tell: Callable[[str], None] | None = None
) -> list[FileInfo]:
    """Returns the results for all files of a folder, in the order of `names`.

    Results of unchanged files come from the listing. Other files are read and decoded in parallel, and the listing is updated.

    Args:
        root: The directory.
        names: Names of files below it, as `walk` returns them.
        cache_dir: The directory of listings; "" for none. A directory that cannot be written is reported to `tell` and otherwise
            ignored.
        tell: A function that is called with lines about the progress.
    """
    tell = tell or (lambda line: None)
    files = unchanged(root, names, cache_dir=cache_dir)
    new = [place for place, file in enumerate(files) if file is None]
    if new:
        tell(
            f"reading and checking {len(new)} of the {len(names)} files of {root!r}" + ", new or changed" * (len(new) < len(names))
        )
    try:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for place, file in zip(new, pool.map(lambda place: inspect_file(root, names[place]), new), strict=True):
                files[place] = file
    finally:
        # The listing is written after a signal, too, so that the files read so far are not read again.
        if cache_dir and new:
            try:
                write_listing(root, (file for file in files if file is not None), cache_dir=cache_dir)
            except OSError as error:
                why = error.strerror or error
                tell(f"`cache_dir={cache_dir}` cannot be written ({why}): the files will be read and checked again next time")
    return [file for file in files if file is not None]


def unchanged(root: str, names: Sequence[str], *, cache_dir: str) -> list[FileInfo | None]:
    """Returns the listed result of each file; None if the file is not listed or has changed since."""
    listed = read_listing(root, cache_dir=cache_dir)

    def same(name: str) -> FileInfo | None:
        file = listed.get(name)
        # Where a file system has no times, a change may not be seen.
        if file is None or file.mtime_ns == 0:
            return None
        try:
            return file if size_and_time(file.path) == (file.size, file.mtime_ns) else None
        except tf.errors.OpError:
            return None

    if "://" not in root:
        return list(map(same, names))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(same, names))


def read_listing(root: str, *, cache_dir: str) -> dict[str, FileInfo]:
    """Returns the listing of `root`: results by the names of the files; empty if there is no usable listing."""
    if not cache_dir:
        return {}
    try:
        # The file is read at once, because another process may replace it meanwhile.
        with open(_listing_path(root, cache_dir), "rb") as file:
            data = pa.BufferReader(file.read())
        table = pa.parquet.ParquetFile(data, page_checksum_verification=True).read()
        if not table.schema.equals(_SCHEMA) or (table.schema.metadata or {}).get(_MADE_BY) != _made_by(root):
            return {}
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    except (OSError, ValueError, pa.ArrowException):  # pyarrow raises all of these for damaged files.
        return {}
    files = {}
    for name, size, mtime_ns, sha256, kind, *image, problem, is_foreign in rows:
        decoded = None if kind is None else ImageInfo(kind, *image)
        files[name] = FileInfo(path_of(root, name), name, decoded, problem, is_foreign, size, mtime_ns, sha256)
    return files


def write_listing(root: str, files: Iterable[FileInfo], *, cache_dir: str) -> None:
    """Writes the listing of `root`, whole or not at all. If two processes write at once, the listing of one is kept.

    Raises:
        OSError: The listing cannot be written.
    """
    unknown = [None] * len(ImageInfo._fields)
    rows = [
        (file.name, file.size, file.mtime_ns, file.sha256, *(file.decoded or unknown), file.problem, file.is_foreign)
        for file in files
        if file.size >= 0
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    schema = _SCHEMA.with_metadata({_MADE_BY: _made_by(root)})
    path = _listing_path(root, cache_dir)
    os.makedirs(cache_dir, exist_ok=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    # Several processes may list the same folder at once, each into a file of its own.
    with whole_file(path, unfinished=unfinished_beside(path)) as unfinished:
        pa.parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), unfinished, write_page_checksum=True)


def _listing_path(root: str, cache_dir: str) -> pathlib.Path:
    return pathlib.Path(cache_dir, f"listing-{hashlib.sha256(_key(root).encode()).hexdigest()[:32]}.parquet")


def _made_by(root: str) -> bytes:
    """Returns the format, the version of TensorFlow and the folder, which a listing must share to be used."""
    return json.dumps({"format": FORMAT, "tensorflow": tf.__version__, "root": _key(root)}).encode()


def _key(root: str) -> str:
    return root.rstrip("/") if "://" in root else os.path.abspath(root)
