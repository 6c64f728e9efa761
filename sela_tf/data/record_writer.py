"""The writer of records in the format of `sela_tf.data.records`. The same images give the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from sela_tf.data.folder_contents import order_of
from sela_tf.data.records import FEATURES, FORMAT, FRAME, HEADER, IMAGE_KEY, INDEX, LENGTH, MANIFEST, digest_of
from sela_tf.files.remote import whole_remote_file

_SMALL = 4096
"""The largest record that is compressed, in bytes. Half of a small record are names of features. Larger records are stored, because their
images are compressed already, and compressing them again takes longer than decoding them."""
_DESCRIBED = {
    "name": "name",
    "class": "class_number",
    "class_name": "class_name",
    "height": "height",
    "width": "width",
    "channels": "channels",
    "largest": "largest",
}
"""Columns of the index that come from attributes of a `Record`, by the names of the columns."""
_COLUMNS = pa.schema(
    [
        ("split", pa.string()), ("name", pa.string()), ("example_id", pa.string()), ("class", pa.int64()), ("class_name", pa.string()),
        ("height", pa.int32()), ("width", pa.int32()), ("channels", pa.int8()),
        ("largest", pa.int32()), ("shard", pa.int32()), ("record", pa.int32()),
        ("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32()), ("content_crc32", pa.uint32()),
    ]
)  # fmt: skip
_OF_SHARD = ("size", "sha256", "ends_crc32")
"""Attributes of a `Shard` that the manifest holds."""


class Record(NamedTuple):
    """One image to be written."""

    name: str
    """The unique name of the image in its source."""
    encoded: bytes
    """The image file."""
    height: int
    """The height in pixels."""
    width: int
    """The width in pixels."""
    channels: int
    """Channels as decoded, 1 to 4."""
    class_number: int = -1
    """The class label; -1 if it is not known."""
    class_name: str = ""
    """The name of the class; "" if it has none."""
    largest: int = 0
    """The largest value of a file of 16 bits; 0 for any other. The pixel rules of a run are made of it."""

    def serialized(self) -> bytes:
        """Returns the record as a serialized tf.train.Example."""
        values: dict[str, bytes | int] = {
            IMAGE_KEY: self.encoded,
            "image/height": self.height,
            "image/width": self.width,
            "image/channels": self.channels,
            "example_id": example_id(self.name).encode(),
            "source_name": self.name.encode(),
        }
        if self.class_number >= 0:
            values["image/class/label"] = self.class_number
        if self.class_name:
            values["image/class/text"] = self.class_name.encode()
        features = {
            key: tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
            if isinstance(value, int)
            else tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            for key, value in values.items()
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        return example.SerializeToString(deterministic=True)


def example_id(name: str) -> str:
    """Returns the id of an example: 32 hexadecimal digits that depend on its name only."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def shard_name(split: str, number: int, count: int) -> str:
    """Returns the path of a shard below its directory, with TFX' names."""
    return f"Split-{split}/data_tfrecord-{number:05d}-of-{count:05d}.gz"


class Shard(NamedTuple):
    """A written shard, as the index and the manifest describe it."""

    file: str
    """The path below the directory."""
    size: int
    """The size in bytes."""
    sha256: str
    """The SHA-256 digest of the file."""
    ends_crc32: int
    """The checksum of the bytes before the first and after the last record."""
    rows: list[dict[str, Any]]
    """Rows of the index, in the order of the file."""


def write_shard(directory: str, file: str, records: Iterable[Record]) -> Shard:
    """Writes a shard, whole or not at all, with one record in memory at a time. The same records give the same bytes.

    Args:
        directory: A directory or a URL.
        file: The path of the shard below it, see `shard_name`.
        records: Records in the order in which they are written.
    """
    path = f"{directory}/{file}"
    tf.io.gfile.makedirs(os.path.dirname(path))
    unfinished = f"{os.path.dirname(path)}/.unfinished-{os.path.basename(path)}-{os.getpid()}"
    rows: list[dict[str, Any]] = []
    digest, size, checksum, length = hashlib.sha256(), 0, 0, 0
    # A full flush makes both compressors start anew after every record, so that their outputs can be mixed.
    compress, store = (zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS) for level in (1, 0))
    with whole_remote_file(path, unfinished=unfinished), tf.io.gfile.GFile(unfinished, "wb") as out:

        def put(data: bytes) -> None:
            nonlocal size
            out.write(data)
            digest.update(data)
            size += len(data)

        put(HEADER)
        for record, framed in _framed(records):
            begin = size
            packer = compress if len(framed) <= _SMALL else store
            packed = packer.compress(framed) + packer.flush(zlib.Z_FULL_FLUSH)
            put(packed)
            checksum, length = zlib.crc32(framed, checksum), length + len(framed)
            described = {column: getattr(record, name) for column, name in _DESCRIBED.items()}
            where = {"offset": begin, "size": len(packed), "crc32": zlib.crc32(packed), "content_crc32": zlib.crc32(framed)}
            rows.append({**described, **where})
        end = store.flush() + struct.pack("<II", checksum, length % 2**32)
        put(end)
    return Shard(file, size, digest.hexdigest(), zlib.crc32(HEADER + end), rows)


def _framed(records: Iterable[Record]) -> Iterator[tuple[Record, bytes]]:
    """Yields each record without its image, and its bytes in a TFRecord file with their checksums.

    TensorFlow computes the checksums, so the records are written to a temporary file and read back.
    """
    described = []
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/shard"
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                writer.write(record.serialized())
                described.append(record._replace(encoded=b""))
        with open(path, "rb") as file:
            for record in described:
                start = file.read(LENGTH)
                yield record, start + file.read(int.from_bytes(start, "little") + FRAME - LENGTH)


def write_manifest(directory: str, shards: Mapping[str, Sequence[Shard]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the index and the manifest of a directory of shards.

    Args:
        directory: The directory or URL of the shards.
        shards: Shards by split; "train" has at least one record.
        about: Further entries of the manifest: "channels" (1 or 3), "class_names" (a list, or None), and any others.

    Returns:
        The manifest.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS.names}
    splits: dict[str, Any] = {}
    for split, parts in shards.items():
        rows = [
            {**row, "split": split, "shard": number, "record": record, "example_id": example_id(row["name"])}
            for number, part in enumerate(parts)
            for record, row in enumerate(part.rows)
        ]
        rows.sort(key=lambda row: order_of(row["name"]))
        for row in rows:
            for name, values in columns.items():
                values.append(row[name])
        sizes = {(row["height"], row["width"]) for row in rows}
        splits[split] = {
            "num_examples": len(rows),
            "image_size": list(sizes.pop()) if len(sizes) == 1 else None,
            "shards": [
                {"file": part.file, "num_examples": len(part.rows), **{name: getattr(part, name) for name in _OF_SHARD}}
                for part in parts
            ],
        }
    index = io.BytesIO()
    pa.parquet.write_table(pa.table(columns, schema=_COLUMNS), index)
    manifest = {
        "format": FORMAT,
        **about,
        "splits": splits,
        "features": FEATURES,
        "index_sha256": hashlib.sha256(index.getvalue()).hexdigest(),
    }
    manifest["digest"] = digest_of(manifest)
    _write_whole(f"{directory}/{INDEX}", index.getvalue())
    _write_whole(f"{directory}/{MANIFEST}", json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest


def _write_whole(path: str, data: bytes) -> None:
    """Writes a file, whole or not at all, on any file system."""
    with whole_remote_file(path) as unfinished, tf.io.gfile.GFile(unfinished, "wb") as file:
        file.write(data)
