"""The listing of a folder, what is in its files, made once: a file is looked at again only where its size or its time has changed.

A listing is one parquet file a folder in a directory of the user's (`--cache_dir`), a row for each file. It saves time and holds nothing
else: without it, damaged, or made by another TensorFlow, which may decode otherwise, everything is looked at anew.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from sela_tf.data.decoding import BadImageError, ImageInfo, UnreadableFormatError, check_image, image_kind, read_header
from sela_tf.data.errors import SourceError
from sela_tf.files.atomic import whole_file

FORMAT = 1
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
"""The endings of files that are meant to be images."""
_SHOWN = 5
_SCHEMA = pa.schema(
    [
        ("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string()), ("kind", pa.string()),
        ("height", pa.int32()), ("width", pa.int32()), ("channels", pa.int8()), ("pixels_sha256", pa.string()), ("problem", pa.string()),
        ("is_foreign", pa.bool_()),
    ]
)  # fmt: skip
_MADE_BY = b"sela_tf.listing"
_START_BYTES = 4096
"""Bytes of a file in which most headers end; those of a jpeg lie behind whatever a camera has written."""


class LookedAt(NamedTuple):
    """A file, and what was found in it."""

    path: str
    name: str
    """Relative to the root, with forward slashes."""
    info: ImageInfo | None = None
    problem: str = ""
    is_foreign: bool = False
    """The problem is that it is an image of a format that is not read."""
    size: int = -1
    """Bytes; -1 of a file that cannot be read."""
    mtime_ns: int = 0
    """Nanoseconds since 1970; 0 where the file system tells no times."""
    sha256: str = ""
    """The sha256 digest of an image file; "" of files that are no images, which are not read to their end."""

    @property
    def top(self) -> str:
        """The top-level directory in lower case, or nothing."""
        return self.name.split("/")[0].lower() if "/" in self.name else ""


def walk(root: str, *, name: str) -> list[str]:
    """The names of all files below `root` but hidden ones and those in hidden directories, sorted as paths are; links are followed,
    each directory once. `root` may be of any file system that TensorFlow knows, such as gs://BUCKET/DIR.

    Raises:
        SourceError: a directory cannot be read, or a name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"{name}: {error.filename!r} cannot be read: {error.strerror}") from error

    names, visited = [], set()
    remote = "://" in root
    found = tf.io.gfile.walk(root) if remote else os.walk(root, followlinks=True, onerror=refuse)
    for directory, directories, files in found:
        real = directory if remote else os.path.realpath(directory)
        directories[:] = [] if real in visited else sorted(each for each in directories if not each.startswith("."))
        if real not in visited:
            below = directory[len(root) :].strip("/")
            shown = [f"{below}/{file}" if below else file for file in files if not file.startswith(".")]
            names += [each for each in shown if remote or _is_file(os.path.join(root, each))]
        visited.add(real)
    # the file system's bytes that are no UTF-8 come as lone surrogates, which no report and no labels file could hold
    odd = [ascii(each) for each in names if any("\ud800" <= character <= "\udfff" for character in f"{root}/{each}")]
    if odd:
        raise SourceError(f"{name}: {len(odd)} file names are not UTF-8: {', '.join(odd[:_SHOWN])}. Rename them")
    return sorted(names, key=order_of)


def _is_file(path: str) -> bool:
    """Tells a file, or a link that led to an image, from other entries."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path) and path.lower().endswith(SUFFIXES))


def order_of(name: str) -> tuple[str, ...]:
    """Names are sorted by this: a directory comes whole."""
    return tuple(name.split("/"))


def look_at(root: str, name: str) -> LookedAt:
    """Reads the file, and decodes it if it is an image."""
    return _look(root, name, decode=True)


def look_at_header(root: str, name: str) -> LookedAt:
    """Reads the header of a file: of an image the size that it tells, no digests, and 0 channels, which are not known yet."""
    return _look(root, name, decode=False)


def _look(root: str, name: str, *, decode: bool) -> LookedAt:
    path = path_of(root, name)
    try:
        # the time before the bytes: what is written meanwhile is looked at again
        size, mtime_ns = size_and_time(path)
        file = LookedAt(path, name, size=size, mtime_ns=mtime_ns)
        with tf.io.gfile.GFile(path, "rb") as opened:
            data = opened.read(_START_BYTES)
            if image_kind(data) is None:  # which need not be read whole
                is_called_image = name.lower().endswith(SUFFIXES)
                return file._replace(problem=("no image" if data else "an empty file") if is_called_image else "")
            if decode:
                data += opened.read()
                file = file._replace(sha256=hashlib.sha256(data).hexdigest())
                return file._replace(info=check_image(data))
            try:
                header = read_header(data)
            except BadImageError:  # perhaps it goes on
                header = read_header(data + opened.read())
            return file._replace(info=ImageInfo(*header, channels=0))
    except BadImageError as error:
        return file._replace(problem=str(error), is_foreign=isinstance(error, UnreadableFormatError))
    except tf.errors.OpError as error:
        return LookedAt(path, name, problem=f"cannot be read: {error.message.rpartition('; ')[2]}")


def path_of(root: str, name: str) -> str:
    """The size and the time of change of a file below `root`."""
    return f"{root.rstrip('/')}/{name}"


def size_and_time(path: str) -> tuple[int, int]:
    """Bytes and time in nanoseconds of a file, by which a change of it is noticed.

    Raises:
        tf.errors.OpError: there is none.
    """
    if "://" not in path:
        with contextlib.suppress(OSError):  # TensorFlow finds the words for what is wrong
            found = os.stat(path)  # and it knows whole seconds only
            return found.st_size, found.st_mtime_ns
    found = tf.io.gfile.stat(path)
    return found.length, found.mtime_nsec


def list_folder(
    root: str, names: Sequence[str], *, cache_dir: str = "", tell: Callable[[str], None] | None = None
) -> list[LookedAt]:
    """Returns what is in each of the files: as listed where they are unchanged, otherwise looked at and decoded, and then listed.

    Args:
        root: a directory.
        names: of files below it, see `walk`.
        cache_dir: where listings are kept; "" for nowhere. That it cannot be written is told and does no harm.
        tell: is given a line about what is being done.
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
            for place, file in zip(new, pool.map(lambda place: look_at(root, names[place]), new), strict=True):
                files[place] = file
    finally:
        # also after a signal: what was looked at so far need not be again
        if cache_dir and new:
            try:
                write_listing(root, (file for file in files if file is not None), cache_dir=cache_dir)
            except OSError as error:
                why = error.strerror or error
                tell(f"--cache_dir={cache_dir} cannot be written ({why}): the files will be read and checked again next time")
    return [file for file in files if file is not None]


def unchanged(root: str, names: Sequence[str], *, cache_dir: str) -> list[LookedAt | None]:
    """Returns what is listed of each file; None where nothing is, or the file is not the same any more."""
    listed = read_listing(root, cache_dir=cache_dir)

    def same(name: str) -> LookedAt | None:
        file = listed.get(name)
        # where a file system tells no times, a change may not be seen
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


def read_listing(root: str, *, cache_dir: str) -> dict[str, LookedAt]:
    """Reads the listing of `root`: what was found in its files, by their names; nothing where no listing can be used."""
    if not cache_dir:
        return {}
    try:
        # in one go, because another process may put another file into its place
        with open(_listing_path(root, cache_dir), "rb") as file:
            data = pa.BufferReader(file.read())
        table = pa.parquet.ParquetFile(data, page_checksum_verification=True).read()
        if not table.schema.equals(_SCHEMA) or (table.schema.metadata or {}).get(_MADE_BY) != _made_by(root):
            return {}
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    except (OSError, ValueError, pa.ArrowException):  # all that pyarrow says of what is damaged
        return {}
    files = {}
    for name, size, mtime_ns, sha256, kind, height, width, channels, pixels_sha256, problem, is_foreign in rows:
        info = None if kind is None else ImageInfo(kind, height, width, channels, pixels_sha256)
        files[name] = LookedAt(path_of(root, name), name, info, problem, is_foreign, size, mtime_ns, sha256)
    return files


def write_listing(root: str, files: Iterable[LookedAt], *, cache_dir: str) -> None:
    """Puts the listing of `root` into place, whole or not at all; of two processes that do so at once, one's is kept.

    Raises:
        OSError: it cannot be written.
    """
    rows = [
        (
            file.name,
            file.size,
            file.mtime_ns,
            file.sha256,
            *(file.info or [None] * len(ImageInfo._fields)),
            file.problem,
            file.is_foreign,
        )
        for file in files
        if file.size >= 0
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    schema = _SCHEMA.with_metadata({_MADE_BY: _made_by(root)})
    path = _listing_path(root, cache_dir)
    os.makedirs(cache_dir, exist_ok=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    # Several processes may list the same folder at once, each into a file of its own.
    with whole_file(path, unfinished=path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex}")) as unfinished:
        pa.parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), unfinished, write_page_checksum=True)


def _listing_path(root: str, cache_dir: str) -> pathlib.Path:
    return pathlib.Path(cache_dir, f"listing-{hashlib.sha256(_key(root).encode()).hexdigest()[:32]}.parquet")


def _made_by(root: str) -> bytes:
    """The versions that a listing depends on besides the files."""
    return json.dumps({"format": FORMAT, "tensorflow": tf.__version__, "root": _key(root)}).encode()


def _key(root: str) -> str:
    return root.rstrip("/") if "://" in root else os.path.abspath(root)
