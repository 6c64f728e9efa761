"""Writes the records that `sela_tf.data.records` describes and reads: the same images give the same bytes."""

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

from sela_tf.data.listing import order_of
from sela_tf.data.records import FEATURES, FORMAT, FRAME, HEADER, IMAGE_KEY, INDEX, LENGTH, MANIFEST, digest_of
from sela_tf.files.remote import whole_remote_file

_SMALL = 4096
"""Bytes of a record up to which it is compressed: of small images' records the names of the features are half. Larger ones are stored,
because their images are compressed already, and to try it once more takes longer than to decode them."""
_DESCRIBED = {
    "name": "name",
    "class": "class_number",
    "class_name": "class_name",
    "height": "height",
    "width": "width",
    "channels": "channels",
}
"""Columns of the index, and where a record has them."""
_COLUMNS = pa.schema(
    [
        ("split", pa.string()), ("name", pa.string()), ("example_id", pa.string()), ("class", pa.int64()), ("class_name", pa.string()),
        ("height", pa.int32()), ("width", pa.int32()), ("channels", pa.int8()), ("shard", pa.int32()), ("record", pa.int32()),
        ("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32()), ("content_crc32", pa.uint32()),
    ]
)  # fmt: skip
_OF_SHARD = ("size", "sha256", "ends_crc32")


class Record(NamedTuple):
    """One image, to be written."""

    name: str
    encoded: bytes
    height: int
    width: int
    channels: int
    class_number: int = -1
    """-1 where it is not known."""
    class_name: str = ""

    def serialized(self) -> bytes:
        """As a tf.train.Example."""
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
    """32 hexadecimal digits that hang on the name alone."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def shard_name(split: str, number: int, count: int) -> str:
    """Below the directory, as TFX names them."""
    return f"Split-{split}/data_tfrecord-{number:05d}-of-{count:05d}.gz"


class Shard(NamedTuple):
    """What was written, for the index and the manifest."""

    file: str
    size: int
    sha256: str
    ends_crc32: int
    """Of the bytes before the first and after the last record."""
    rows: list[dict[str, Any]]
    """Of the index, in the order of the file."""


def write_shard(directory: str, file: str, records: Iterable[Record]) -> Shard:
    """Writes the shard `file` below `directory`, whole or not at all, in memory for one record.

    The same records give the same bytes.
    """
    path = f"{directory}/{file}"
    tf.io.gfile.makedirs(os.path.dirname(path))
    unfinished = f"{os.path.dirname(path)}/.unfinished-{os.path.basename(path)}-{os.getpid()}"
    rows: list[dict[str, Any]] = []
    digest, size, checksum, length = hashlib.sha256(), 0, 0, 0
    # each starts anew after every record, so that what they write can stand in any order
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
    """Each record, without its image, and its bytes in a TFRecord file, checksums included, which are TensorFlow's to make."""
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
    """Writes index and manifest of the shards of each split, and returns the manifest.

    Args:
        directory: that they were written to.
        shards: by split; "train" has at least one record.
        about: what else the manifest says: "channels" (1 or 3), "class_names" (a list, or None) and whatever is worth knowing.
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
    with whole_remote_file(path) as unfinished, tf.io.gfile.GFile(unfinished, "wb") as file:
        file.write(data)
