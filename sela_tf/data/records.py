"""Images in gzip TFRecord shards of tf.train.Example, which TFX and TensorFlow read as any other; here each is found and checked alone.

The compressor is flushed after every record, so that unpacking can begin at any of them. With an index of where they begin, records are
what files in a folder are: epochs have exact permutations, a pass over a part reads that part, and what is not looked at stays on disk.

    DIR/Split-train/data_tfrecord-00000-of-00002.gz …    one tf.train.Example an image, see FEATURES
    DIR/Split-eval/…
    DIR/index.parquet     a row for each image, in the order of training: where it lies, its name, class and size
    DIR/manifest.json     written last: counts and digests of all of these
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from sela_tf.data.errors import SourceError, raised_in_graph

MANIFEST, INDEX = "manifest.json", "index.parquet"
IMAGE_KEY = "image/encoded"
FEATURES = {
    IMAGE_KEY: "the file: jpeg, png, gif or bmp",
    "image/height": "pixels",
    "image/width": "pixels",
    "image/channels": "as they are decoded",
    "image/class/label": "number of the class, where classes are known",
    "image/class/text": "its name, where it has one",
    "example_id": "the same for the same name",
    "source_name": "path below the folder, or split and row of the source",
}
FORMAT = 1
HEADER = bytes.fromhex("1f8b0800000000000003")
"""Of every shard: gzip, without a name or a time."""
_WHERE = ("shard", "record", "offset", "size", "crc32", "content_crc32")
LENGTH, FRAME = 8, 16
"""Bytes of a record that hold its length, and that are not its data: the length, its checksum, and that of the data."""


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Of all that the manifest says, and so, by the digests in it, of all that it is about."""
    return hashlib.sha256(json.dumps({**manifest, "digest": ""}, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: str, *, name: str) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises:
        SourceError: there is none, or it is damaged.
    """
    if tf.io.gfile.exists(directory) and not tf.io.gfile.isdir(directory):
        raise SourceError(f"{name}: {directory!r} is not a directory")
    try:
        with tf.io.gfile.GFile(f"{directory}/{MANIFEST}", "rb") as file:
            manifest = json.loads(file.read())
    except tf.errors.NotFoundError as error:
        raise SourceError(
            f"{name}: {directory!r} has no {MANIFEST}, so it holds no records, or ingestion was not finished. "
            "python -m components.data_ingestion makes them, also of TFRecords that are there: --dataset=tfrecords:GLOB"
        ) from error
    except (tf.errors.OpError, ValueError) as error:
        raise SourceError(f"{name}: {MANIFEST} in {directory!r} is damaged ({error}): ingest the images again") from error
    if not isinstance(manifest, dict) or manifest.get("digest") != digest_of(manifest):
        raise SourceError(f"{name}: {MANIFEST} in {directory!r} was changed or damaged: ingest the images again")
    if manifest["format"] != FORMAT:
        raise SourceError(
            f"{name}: {directory!r} is of format {manifest['format']}, this is for format {FORMAT}: ingest the images again"
        )
    return manifest


def read_index(directory: str, manifest: Mapping[str, Any], name: str) -> pa.Table:
    """A row for each image, of all splits.

    Raises:
        SourceError: it cannot be read, or is not the one that `manifest` is of.
    """
    try:
        with tf.io.gfile.GFile(f"{directory}/{INDEX}", "rb") as file:
            data = file.read()
    except tf.errors.OpError as error:
        raise SourceError(f"{name}: {INDEX} in {directory!r} cannot be read: restore it, or ingest the images again") from error
    if hashlib.sha256(data).hexdigest() != manifest["index_sha256"]:
        raise SourceError(f"{name}: {INDEX} in {directory!r} was changed or damaged: restore it, or ingest the images again")
    return pa.parquet.read_table(io.BytesIO(data))


def records_of(directory: str, split: str, manifest: Mapping[str, Any], rows: pa.Table, *, name: str) -> Records:
    """The places of the images of a split, which `rows` of the index tell.

    Raises:
        SourceError: a shard is missing, or is not as it was when it was written.
    """
    described = manifest["splits"][split]
    columns = {each: rows[each].to_numpy() for each in _WHERE}
    for number, shard in enumerate(described["shards"]):
        own = columns["shard"] == number
        _check_shard(directory, shard, columns["offset"][own] + columns["size"][own], split, described["num_examples"], name)
    return Records(
        shards=tuple(f"{directory}/{shard['file']}" for shard in described["shards"]),
        digests=tuple(shard["sha256"] for shard in described["shards"]),
        counts=tuple(shard["num_examples"] for shard in described["shards"]),
        **columns,
    )


def _check_shard(directory: str, shard: Mapping[str, Any], ends: np.ndarray, split: str, num_examples: int, name: str) -> None:
    """Its length, and the bytes at its ends, which belong to no record."""
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
    """Images in shards, and where each lies: arrays [N]."""

    shards: tuple[str, ...]
    digests: tuple[str, ...]
    """Of the shards; a file that was replaced by another is another."""
    counts: tuple[int, ...]
    """Records of each shard."""
    shard: np.ndarray
    """Of each record, its place in `shards`."""
    record: np.ndarray
    """Its place in its shard."""
    offset: np.ndarray
    size: np.ndarray
    """Bytes of the packed record."""
    crc32: np.ndarray
    """Of the packed record."""
    content_crc32: np.ndarray
    """Of what was packed, which does not depend on who packed it."""

    def __len__(self) -> int:
        return len(self.shard)

    def take(self, indices: np.ndarray) -> Records:
        """The records at `indices`, in that order."""
        columns = {name: getattr(self, name)[indices] for name in _WHERE}
        return dataclasses.replace(self, **columns)

    def digested(self, names: Sequence[str]) -> Iterator[bytes]:
        """Names, and what was packed."""
        for name, checksum in zip(names, self.content_crc32, strict=True):
            yield f"{name}\0{checksum}\0".encode()

    def encoded(self, indices: tf.Tensor) -> tf.Tensor:
        """The image files of records int64 [B]: string [B]; runs in a graph.

        A record that is damaged is an InvalidArgumentError with the words of a SourceError.
        """
        serialized = tf.ensure_shape(tf.numpy_function(self._read, [indices], tf.string, stateful=False), [None])
        return tf.io.parse_example(serialized, {IMAGE_KEY: tf.io.FixedLenFeature([], tf.string)})[IMAGE_KEY]

    def _read(self, indices: np.ndarray) -> np.ndarray:
        with raised_in_graph():
            return np.array([self._unpacked(int(i)) for i in indices], object)

    def _unpacked(self, i: int) -> bytes:
        shard = self.shard[i]
        file = _opened(self.shards[shard], self.digests[shard])
        packed = file.read(int(self.offset[i]), int(self.size[i]))
        if zlib.crc32(packed) != self.crc32[i]:
            raise SourceError(
                f"{file.path}: record {self.record[i]} of {self.counts[shard]}, from 0, is damaged or was changed. Restore the file, or ingest the "
                "images again"
            )
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed)[LENGTH + 4 : -4]


class _Opened:
    """A file that several threads read."""

    def __init__(self, path: str, digest: str):
        self.path, self.digest = path, digest
        self._descriptor = None if "://" in path else os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        if self._descriptor is not None:
            return os.pread(self._descriptor, size, offset)
        with tf.io.gfile.GFile(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


# a file that falls out while a thread reads it is closed when that thread lets go of it
_opened = functools.lru_cache(maxsize=128)(_Opened)
