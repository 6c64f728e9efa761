"""Records: images in gzip TFRecord shards of tf.train.Example, with an index, so that each record can be read and checked alone.

TFX and TensorFlow read the shards like any others. Here the compressor is flushed after every record, so that decompression can begin at
any record. With an index of the places, records can be read like files in a folder: epochs have exact permutations, a pass over some
images reads only those, and nothing else is kept in memory.

    DIR/Split-train/data_tfrecord-00000-of-00002.gz …    one tf.train.Example for each image, see FEATURES
    DIR/Split-eval/…
    DIR/index.parquet     a row for each image, in the order of training: its place, name, class and size
    DIR/manifest.json     written last: counts and digests of all these files
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from sela_tf.data.errors import SourceError, raised_in_graph
from sela_tf.data.headers import MAX_PIXELS
from sela_tf.data.records_check import PLACE, check_index, check_manifest, check_places
from sela_tf.files.json_objects import json_object

MANIFEST, INDEX = "manifest.json", "index.parquet"
IMAGE_KEY = "image/encoded"
"""The feature of an example that holds the image file."""
FEATURES = {
    IMAGE_KEY: "the file: jpeg, png, gif, bmp or webp",
    "image/height": "pixels",
    "image/width": "pixels",
    "image/channels": "as they are decoded",
    "image/class/label": "number of the class, where classes are known",
    "image/class/text": "its name, where it has one",
    "example_id": "the same for the same name",
    "source_name": "path below the folder, or split and row of the source",
}
"""Features of an example, and their meaning."""
FORMAT = 1
"""The version of the records' format."""
HEADER = bytes.fromhex("1f8b0800000000000003")
"""The first bytes of every shard: a gzip header without a name or a time."""
MOST_BYTES = 4 * MAX_PIXELS + 2**20
"""The most bytes of a record: those of the largest image that is decoded, without any compression."""
LENGTH, FRAME = 8, 16
"""Bytes of a TFRecord that hold its length (8), and all that are not data: the length, its checksum (4) and that of the data (4)."""


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 digest of a manifest. By the digests in the manifest it stands for the index and all shards, too."""
    return hashlib.sha256(json.dumps({**manifest, "digest": ""}, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: str, *, name: str) -> dict[str, Any]:
    """Reads the manifest of a directory of records.

    Args:
        directory: A directory or a URL.
        name: The name of the data set, for messages.

    Raises:
        SourceError: There is no manifest, or it is damaged or of another format.
    """
    if tf.io.gfile.exists(directory) and not tf.io.gfile.isdir(directory):
        raise SourceError(f"{name}: {directory!r} is not a directory")
    try:
        with tf.io.gfile.GFile(f"{directory}/{MANIFEST}", "rb") as file:
            manifest = json_object(file.read())
    except tf.errors.NotFoundError as error:
        raise SourceError(
            f"{name}: {directory!r} has no {MANIFEST}, so it holds no records, or ingestion was not finished. "
            "python -m components.data_ingestion makes them, also of existing TFRecords (tfrecords:GLOB)"
        ) from error
    except (tf.errors.OpError, ValueError) as error:
        raise SourceError(f"{name}: {MANIFEST} in {directory!r} is damaged ({error}): ingest the images again") from error
    if manifest.get("digest") != digest_of(manifest):
        raise SourceError(f"{name}: {MANIFEST} in {directory!r} was changed or damaged: ingest the images again")
    if manifest.get("format") != FORMAT:
        raise SourceError(
            f"{name}: {directory!r} is of format {manifest.get('format')}, this is for format {FORMAT}: ingest the images again"
        )
    try:
        check_manifest(manifest)
    except ValueError as error:
        raise SourceError(f"{name}: {MANIFEST} in {directory!r} is damaged ({error}): ingest the images again") from error
    return manifest


def read_index(directory: str, manifest: Mapping[str, Any], name: str) -> pa.Table:
    """Reads the index: a row for each image of all splits.

    Args:
        directory: A directory or a URL.
        manifest: Its manifest.
        name: The name of the data set, for messages.

    Raises:
        SourceError: The index cannot be read, or its digest is not that of the manifest.
    """
    try:
        with tf.io.gfile.GFile(f"{directory}/{INDEX}", "rb") as file:
            data = file.read()
    except tf.errors.OpError as error:
        raise SourceError(f"{name}: {INDEX} in {directory!r} cannot be read: restore it, or ingest the images again") from error
    if hashlib.sha256(data).hexdigest() != manifest["index_sha256"]:
        raise SourceError(f"{name}: {INDEX} in {directory!r} was changed or damaged: restore it, or ingest the images again")
    try:
        rows = pa.parquet.ParquetFile(io.BytesIO(data)).metadata.num_rows
        wanted = sum(split["num_examples"] for split in manifest["splits"].values())
        if rows != wanted:
            raise ValueError(f"{rows} rows, and the manifest counts {wanted} images")
        table = pa.parquet.read_table(io.BytesIO(data))
        check_index(table, manifest)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise SourceError(f"{name}: {INDEX} in {directory!r} is damaged ({error}): ingest the images again") from error
    return table


def records_of(directory: str, split: str, manifest: Mapping[str, Any], rows: pa.Table, *, name: str) -> Records:
    """Returns the store of the images of a split, after a check of its shards.

    Args:
        directory: A directory or a URL.
        split: "train" or "eval".
        manifest: The manifest of the directory.
        rows: Rows of the index for this split.
        name: The name of the data set, for messages.

    Raises:
        SourceError: A shard is missing, has another length, or was changed outside of its records.
    """
    described = manifest["splits"][split]
    columns = {each: rows[each].to_numpy() for each in PLACE}
    try:
        check_places(columns, described["shards"])
    except ValueError as error:
        raise SourceError(f"{name}: {INDEX} in {directory!r} is damaged ({error}): ingest the images again") from error
    for number, shard in enumerate(described["shards"]):
        own = columns["shard"] == number
        _check_shard(directory, shard, columns["offset"][own] + columns["size"][own], split, described["num_examples"], name)
    return Records(
        shards=tuple(f"{directory}/{shard['file']}" for shard in described["shards"]),
        digests=tuple(shard["sha256"] for shard in described["shards"]),
        counts=tuple(shard["num_examples"] for shard in described["shards"]),
        # Records that were made before there were pixel rules lack this column.
        largest=rows["largest"].to_numpy() if "largest" in rows.column_names else None,
        **columns,
    )


def _check_shard(directory: str, shard: Mapping[str, Any], ends: np.ndarray, split: str, num_examples: int, name: str) -> None:
    """Checks the length of a shard, and the bytes before and after its records; `ends` are the offsets where its records end."""
    path, count = f"{directory}/{shard['file']}", shard["num_examples"]
    way_out = "Restore the file, or ingest the images again"
    try:
        size = tf.io.gfile.stat(path).length
    except tf.errors.NotFoundError as error:
        raise SourceError(
            f"{name}: {shard['file']} is missing, with {count} of the {num_examples} examples of split {split!r}. {way_out}"
        ) from error
    if size != shard["size"]:
        whole = int(np.count_nonzero(ends <= size))
        raise SourceError(
            f"{name}: {shard['file']} has {size} bytes, and {shard['size']} were written: {whole} of its {count} records are whole. "
            f"{way_out}"
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        outside = file.read(len(HEADER))
        file.seek(int(max(ends, default=len(HEADER))))
        outside += file.read()
    if zlib.crc32(outside) != shard["ends_crc32"]:
        raise SourceError(
            f"{name}: {shard['file']} was changed or damaged before the first or after the last of its {count} records. {way_out}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """A store of N images in shards, with the place of each."""

    shards: tuple[str, ...]
    """Paths or URLs of the shards."""
    digests: tuple[str, ...]
    """SHA-256 digests of the shards. A shard that is replaced while it is open has another digest."""
    counts: tuple[int, ...]
    """The number of records in each shard."""
    shard: np.ndarray
    """Places of the records' shards in `shards`, integers `[N]`."""
    record: np.ndarray
    """Places of the records in their shards, integers `[N]`."""
    offset: np.ndarray
    """Offsets of the compressed records in their shards, in bytes, integers `[N]`."""
    size: np.ndarray
    """Lengths of the compressed records, in bytes, integers `[N]`."""
    crc32: np.ndarray
    """Checksums of the compressed records, integers `[N]`."""
    content_crc32: np.ndarray
    """Checksums of the records before compression, integers `[N]`. They do not depend on the compressor."""
    largest: np.ndarray | None = None
    """The largest value of each file of 16 bits, 0 for any other, integers `[N]`; None for records that do not say it."""

    def __len__(self) -> int:
        return len(self.shard)

    def take(self, indices: np.ndarray) -> Records:
        """Returns the store of the records at `indices`, in that order."""
        columns = {name: getattr(self, name)[indices] for name in PLACE}
        return dataclasses.replace(self, largest=None if self.largest is None else self.largest[indices], **columns)

    def digested(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yields the name and the checksum of each record before compression."""
        for name, checksum in zip(names, self.content_crc32, strict=True):
            yield f"{name}\0{checksum}\0".encode()

    def checksums(self) -> np.ndarray:
        """Returns the checksums of the records before compression, uint64 `[N]`."""
        return self.content_crc32.astype(np.uint64)

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads the image files of the records at `indices`; runs in a graph.

        Args:
            indices: Places in this store, int64 `[B]`.

        Returns:
            Contents of the image files, string `[B]`.

        Raises:
            tf.errors.InvalidArgumentError: A record is damaged. The message has that of a SourceError.
        """
        serialized = tf.ensure_shape(tf.numpy_function(self._read, [indices], tf.string, stateful=False), [None])
        return tf.io.parse_example(serialized, {IMAGE_KEY: tf.io.FixedLenFeature([], tf.string)})[IMAGE_KEY]

    def _read(self, indices: np.ndarray) -> np.ndarray:
        with raised_in_graph():
            return np.array([self._unpacked(int(i)) for i in indices], object)

    def _unpacked(self, i: int) -> bytes:
        shard = self.shard[i]
        file = _open_shard(self.shards[shard], self.digests[shard])
        packed = file.read(int(self.offset[i]), int(self.size[i]))
        if zlib.crc32(packed) != self.crc32[i]:
            raise SourceError(
                f"{file.path}: record {self.record[i]} of {self.counts[shard]}, from 0, is damaged or was changed. Restore the file, or ingest the "
                "images again"
            )
        return self._checked(packed, file.path, i)

    def _checked(self, packed: bytes, path: str, i: int) -> bytes:
        """Unpacks a record, no further than its own length says and an image file can be long."""
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            head = unpacker.decompress(packed, LENGTH)
            length = int.from_bytes(head, "little")
            if length > MOST_BYTES:
                raise ValueError(f"it claims {length} bytes")
            rest = unpacker.decompress(unpacker.unconsumed_tail, length + FRAME)
            if len(rest) != length + FRAME - LENGTH:
                raise ValueError("it has another length than it says")
        except (ValueError, zlib.error) as error:
            raise SourceError(f"{path}: record {self.record[i]}, from 0, is damaged ({error}): ingest the images again") from error
        return rest[4:-4]


class _OpenShard:
    """An open file that several threads read at once."""

    def __init__(self, path: str, digest: str):
        self.path, self.digest = path, digest
        self._descriptor = None if "://" in path else os.open(path, os.O_RDONLY)
        if self._descriptor is not None:
            # The file is closed when nobody holds this object any more, or when Python ends.
            weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        if self._descriptor is not None:
            return os.pread(self._descriptor, size, offset)
        with tf.io.gfile.GFile(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)


# A file that leaves the cache while a thread reads it is closed when that thread has read it.
_open_shard = functools.lru_cache(maxsize=128)(_OpenShard)
