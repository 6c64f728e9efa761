"""Image files that are decoded once: their pixels are kept in memory, and on disk for the next run of the same folder.

The cache of a folder is one Parquet file in `cache_dir`, for one set of pixel rules: a row for each image, by the digest of its file. It
is a cache only: images that it lacks, or whose page is damaged, are decoded again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from sela_tf.data.decoding import decode_image
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pixel_rules import PixelRules, reduced_sizes
from sela_tf.data.stores import DecodedFiles, Files
from sela_tf.files.atomic import unfinished_beside, whole_file

_SCHEMA = pa.schema([("sha256", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("pixels", pa.large_binary())])
_FORMAT = 1
"""The version of the decoding and of the file; a cache of another one is not read."""
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 500, 2**26
_KEPT_OF_A_SOURCE = 4
"""Caches that are kept of a source: those of two choices of settings, of training and held-out images."""
_GIB = 2**30


def keep_decoded(
    sets: Sequence[ImageSet], *, memory_limit: int, cache_dir: str = "", tell: Callable[[str], None] | None = None
) -> list[ImageSet]:
    """Returns the same sets with their image files decoded into memory, if those of all sets fit. Views are the same, to the bit.

    Args:
        sets: The sets of a run, by their rules; those that are not files, or of which no listing knows the sizes, stay as they are.
        memory_limit: The bytes that the pixels may take.
        cache_dir: The directory that keeps the pixels; "" for none. A directory that cannot be written is told and otherwise ignored.
        tell: A function that is called with lines for the user.

    Raises:
        SourceError: A file cannot be read any more, or has changed.
    """
    tell = tell or (lambda line: None)
    places = [place for place, images in enumerate(sets) if isinstance(images.store, Files) and images.store.digests is not None]
    needed = sum(_shapes(sets[place]).prod(axis=1).sum() for place in places)
    if not needed:
        return list(sets)
    if needed > memory_limit:
        tell(
            f"`memory_limit={memory_limit / _GIB:g}` GiB: the image files take {needed / _GIB:.1f} GiB when they are decoded, so each is "
            "decoded whenever it is needed"
        )
        return list(sets)
    kept = list(sets)
    for place in places:
        kept[place] = dataclasses.replace(sets[place], store=_decoded(sets[place], cache_dir, tell))
    return kept


def _decoded(images: ImageSet, cache_dir: str, tell: Callable[[str], None]) -> DecodedFiles:
    """Returns the store of decoded files: from the cache, and the others by decoding them."""
    files = images.store
    if not isinstance(files, Files) or files.digests is None:
        raise TypeError(f"the images of {images.full_name} are not listed files")
    shapes = _shapes(images)
    ends = np.cumsum(shapes.prod(axis=1))
    starts = ends - shapes.prod(axis=1)
    buffer = np.empty(ends[-1], np.uint8)
    waiting: dict[str, list[int]] = {}
    for place, digest in enumerate(files.digests):
        waiting.setdefault(digest, []).append(place)

    def put(digest: str, shape: tuple[int, ...], pixels: np.ndarray) -> None:
        for place in waiting.pop(digest):
            if shape != tuple(shapes[place]):
                raise SourceError(
                    f"{images.full_name}: {files.paths[place]} has changed since it was checked: give the same command again"
                )
            buffer[starts[place] : ends[place]] = pixels

    path = _path(images, cache_dir)
    if cache_dir:
        for digest, shape, pixels in _cached(path, images.channels):
            if digest in waiting and shape == tuple(shapes[waiting[digest][0]]):
                put(digest, shape, pixels)
    if new := [(digest, places[0]) for digest, places in waiting.items()]:
        for (digest, _), pixels in zip(new, _pixels([files.paths[place] for _, place in new], images), strict=True):
            put(digest, pixels.shape, pixels.reshape(-1))
        if cache_dir:
            try:
                _write(path, files.digests, shapes, [buffer[start:end] for start, end in zip(starts, ends, strict=True)])
                _forget_old(path)
                tell(f"pixels of {len(files)} images are kept for the next run: {path}, {path.stat().st_size / 2**20:.0f} MiB")
            except OSError as error:
                tell(
                    f"`cache_dir={cache_dir}` cannot be written ({error.strerror or error}): the images will be decoded again next time"
                )
    with tf.device("CPU"):
        return DecodedFiles(files, tf.constant(buffer), starts, shapes)


def _shapes(images: ImageSet) -> np.ndarray:
    """Returns the shapes (h, w, C) of the decoded files, int64 `[N, 3]`."""
    sizes = getattr(images.store, "sizes", None)
    if sizes is None:
        return np.zeros((0, 3), np.int64)
    return np.insert(reduced_sizes(sizes, images.rules.shorter_side), 2, images.channels, axis=1)


def _pixels(paths: Sequence[str], images: ImageSet) -> Iterator[np.ndarray]:
    """Yields the pixels of files, in order; they are decoded in parallel.

    Raises:
        SourceError: A file cannot be read.
    """

    def decode(path: tf.Tensor) -> tf.Tensor:
        return decode_image(tf.io.read_file(path), images.channels, images.rules)

    decoded = tf.data.Dataset.from_tensor_slices(list(paths)).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    count = 0
    try:
        for pixels in decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
            yield pixels
            count += 1
    except tf.errors.OpError as error:
        raise SourceError(
            f"{images.full_name}: {paths[count]} cannot be read any more ({error.message.rpartition('; ')[2].splitlines()[0]})"
        ) from error


def _cached(path: pathlib.Path, channels: int) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Yields digest, shape (h, w, C) and pixels of each image in the cache, until its end or a page that is damaged."""
    try:
        with pa.OSFile(str(path)) as opened:
            file = pa.parquet.ParquetFile(opened, page_checksum_verification=True)
            if not file.schema_arrow.equals(_SCHEMA):
                return
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                digests, heights, widths, pixels = batch.columns
                for digest, height, width, each in zip(digests, heights, widths, pixels, strict=True):
                    values = np.frombuffer(each.as_buffer(), np.uint8)
                    yield digest.as_py(), (height.as_py(), width.as_py(), channels), values
    except (OSError, ValueError, pa.ArrowException):  # pyarrow raises all of these for damaged files.
        return


def _write(path: pathlib.Path, digests: Sequence[str], shapes: np.ndarray, pixels: Sequence[np.ndarray]) -> None:
    """Writes the cache, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    firsts = sorted({digest: place for place, digest in reversed(list(enumerate(digests)))}.values())
    os.makedirs(path.parent, exist_ok=True)
    # Several processes may cache the same folder at once, each in a file of its own.
    with (
        whole_file(path, unfinished=unfinished_beside(path)) as unfinished,
        pa.parquet.ParquetWriter(unfinished, _SCHEMA, compression="zstd", use_dictionary=False, write_page_checksum=True) as writer,
    ):
        for some in _blocks(firsts, [pixels[i].size for i in firsts]):
            columns = [[digests[i] for i in some], shapes[some, 0], shapes[some, 1], [pixels[i].tobytes() for i in some]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))


def _blocks(places: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yields the places in order, in blocks of at most some number of images and bytes, so that their copies take little memory."""
    block: list[int] = []
    taken = 0
    for place, size in zip(places, sizes, strict=True):
        if block and (len(block) == _ROWS_AT_ONCE or taken + size > _BYTES_AT_ONCE):
            yield block
            block, taken = [], 0
        block.append(place)
        taken += size
    if block:
        yield block


def _path(images: ImageSet, cache_dir: str) -> pathlib.Path:
    """Returns the path of the cache: its name tells the source, and all that decides on the pixels."""
    rules: PixelRules = images.rules
    source, kind = (
        hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        for parts in (
            [images.name],
            [_FORMAT, images.setting, images.names and images.names[0], images.channels, rules, tf.__version__],
        )
    )
    return pathlib.Path(cache_dir, f"pixels-{source}-{kind}.parquet")


def _forget_old(path: pathlib.Path) -> None:
    """Removes the oldest caches of a source, so that trying settings does not fill the disk."""
    of_source = sorted(
        path.parent.glob(f"{path.name.rpartition('-')[0]}-*.parquet"), key=lambda each: each.stat().st_mtime, reverse=True
    )
    for each in of_source[_KEPT_OF_A_SOURCE:]:
        each.unlink()
