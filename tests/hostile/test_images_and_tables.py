"""Image files, TFRecords and tables that harm whoever opens them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pathlib
import re
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from components.data_ingestion.shard_sources import TfExamples
from sela_tf.data.csv_rows import csv_text, neutral, original_names, read_csv
from sela_tf.data.decoding import check_image
from sela_tf.data.errors import SourceError
from sela_tf.data.gif_frames import check_frames
from sela_tf.data.headers import MAX_PIXELS, BadImageError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import read_known_labels
from sela_tf.data.left_out import ImageNote, write_left_out
from sela_tf.data.record_writer import Record, write_manifest, write_shard
from sela_tf.data.records import INDEX, MANIFEST, MOST_BYTES, digest_of
from sela_tf.data.sources import load_source
from sela_tf.data.stores import Arrays
from sela_tf.runs.cluster_names import read_names
from sela_tf.serving.label_writer import LabelWriter

FORMULAS = ["=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(A1)", "\tx", "\rx", "'=x", "''-x", "\uff1dx", '=a;b,"c"\n']
HARMLESS = ["a.png", "a=b.png", "'a.png", " a", "", "1", "x;=1", "\N{CAT FACE}"]


def danger(cell: str) -> bool:
    """A spreadsheet would compute the cell."""
    return cell[:1] in tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


class TestTables:
    @given(st.text() | st.sampled_from(FORMULAS).flatmap(lambda text: st.text("'").map(lambda quotes: quotes + text)))
    @example("")
    def test_any_text_comes_back_and_none_is_computed(self, text):
        assert not (neutral(text) and danger(neutral(text)))
        assert original_names([neutral(text)]) == [text]

    def test_harmless_text_and_numbers_stay(self):
        assert [neutral(text) for text in HARMLESS] == HARMLESS

    def test_left_out(self, tmp_path):
        notes = [ImageNote(name, "=reason") for name in (*FORMULAS, *HARMLESS) if name]
        write_left_out(tmp_path / "left_out.csv", notes)
        text = (tmp_path / "left_out.csv").read_text()
        cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
        assert not any(map(danger, cells))
        # A spreadsheet of another language parts cells at semicolons: those within a name stand in quotes.
        assert '"x;=1"' in text
        found = read_csv(tmp_path / "left_out.csv", [ImageNote._fields], setting="x").rows
        assert [tuple(row.cells) for row in found] == notes

    def test_a_file_of_labels_is_read_as_known_labels(self, tmp_path, rng):
        names = tuple(sorted({name.replace("\r", "r") for name in (*FORMULAS, *HARMLESS) if name}))
        clusters = rng.integers(0, 4, len(names))
        path = tmp_path / "labels.csv"
        with LabelWriter(path) as writer:
            for part in (slice(0, 3), slice(3, None)):
                columns = {"name": np.array(names)[part], "cluster": clusters[part], "margin": -rng.random(len(names))[part]}
                writer.write(
                    {**columns, "cluster_name": np.full(len(names[part]), "=1+1"), "embedding": -np.ones((len(names[part]), 2))}
                )
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert not any(danger(row[i]) for row in rows for i in (0, 3))
        # Numbers stay numbers, negative ones too.
        assert all(float(row[2]) <= 0 and float(row[4]) == -1 for row in rows)
        (tmp_path / "known.csv").write_text(csv_text(("name", "cluster"), [(original_names([row[0]])[0], row[1]) for row in rows]))
        images = ImageSet(
            name="x", channels=1, store=Arrays(np.zeros((len(names), 2, 2, 1), np.uint8)), names=names, image_size=(2, 2)
        )
        assert read_known_labels(tmp_path / "known.csv", images, 4).labels.tolist() == clusters.tolist()
        with (tmp_path / "known.csv").open("w", newline="") as file:  # the columns as they stand, as a person would cut them out
            csv.writer(file).writerows([header[:2], *(row[:2] for row in rows)])
        assert read_known_labels(tmp_path / "known.csv", images, 4).labels.tolist() == clusters.tolist()

    def test_names_of_clusters(self, tmp_path):
        (tmp_path / "names.csv").write_text("head,cluster,source,name\n0,1,,'=cat\n,,'-x.png,'@dog\n")
        names = read_names(tmp_path / "names.csv", num_heads=1, num_clusters=4, setting="names")
        assert names.clusters == {(0, 1): "=cat"}
        assert names.images == {"-x.png": "@dog"}

    def test_the_script_of_the_page_has_the_same_rule(self):
        script = (pathlib.Path(__file__).parents[2] / "sela_tf" / "reporting" / "page" / "page.js").read_text()
        pattern = re.search(r"neutral = \(text\) => \(/\^(.*)/\.test\(text\) \? `'\$\{text\}`", script)[1]
        for text in (*FORMULAS, *HARMLESS):
            assert (neutral(text) != text) == bool(re.match(pattern, text)), text


def gif(frames: list[tuple[int, int]]) -> bytes:
    """A gif of 1 x 1 pixels with frames of other sizes, whose pixels are not there."""
    parts = [b"\x2c" + struct.pack("<4HB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00" for width, height in frames]
    comment = b"\x21\xfe\x03abc\x00"
    return b"GIF89a" + struct.pack("<2H3B", 1, 1, 0x80, 0, 0) + bytes(6) + comment.join(parts) + b"\x3b"


class TestImages:
    @pytest.mark.parametrize("frames", [[(65535, 65535)], [(1, 1), (30000, 30000)], [(20000, 20000)] * 2])
    def test_frames_of_a_gif(self, frames):
        """TensorFlow takes the first frame, and decodes all."""
        with pytest.raises(BadImageError, match="a gif whose frames have [0-9,]+ pixels"):
            check_image(gif(frames))

    def test_frames_that_fit(self):
        check_frames(gif([(1, 1), (10, 20)]))
        assert check_image(gif([(1, 1)])).kind == "gif"

    @pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (MAX_PIXELS, 2)])
    def test_the_header_of_a_png(self, size):
        header = struct.pack(">2I5B", *size, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        with pytest.raises(BadImageError, match="at most .* are decoded"):
            check_image(data)


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of TFRecords, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class TestRecords:
    @pytest.mark.parametrize("packed", [False, True])
    def test_a_length_that_would_end_the_process(self, tmp_path, packed):
        with tf.io.TFRecordWriter(str(tmp_path / "x")) as writer:
            writer.write(b"")
        length = struct.pack("<Q", 2**45)
        data = (tmp_path / "x").read_bytes() + length + masked_crc32c(length) + b"x" * 100
        (tmp_path / "x").write_bytes(gzip.compress(data) if packed else data)
        source = TfExamples(str(tmp_path / "x"), "x", "image/encoded", "", 0.0, False)
        with pytest.raises(SourceError, match=f"record 1 claims {2**45} bytes, and no image has more than {MOST_BYTES}"):
            list(source.records())

    @pytest.fixture
    def directory(self, tmp_path, rng) -> pathlib.Path:
        records = [
            Record(f"{i}.png", tf.io.encode_png(rng.integers(0, 256, (4, 4, 1), np.uint8)).numpy(), 4, 4, 1, i % 2)
            for i in range(5)
        ]
        shard = write_shard(str(tmp_path), "Split-train/data_tfrecord-00000-of-00001.gz", records)
        write_manifest(str(tmp_path), {"train": [shard]}, {"channels": 1, "class_names": ["a", "b"]})
        assert len(load_source(f"records:{tmp_path}").train) == 5
        return tmp_path

    def rewrite(self, directory: pathlib.Path, manifest: dict) -> None:
        manifest["index_sha256"] = hashlib.sha256((directory / INDEX).read_bytes()).hexdigest()
        manifest["digest"] = digest_of(manifest)
        (directory / MANIFEST).write_text(json.dumps(manifest))

    @pytest.mark.parametrize(
        "change",
        [
            lambda found: found.pop("splits"), lambda found: found.pop("class_names") and found.update(class_names=[1]),
            lambda found: found.update(splits=[]), lambda found: found.update(channels="x"), lambda found: found["splits"].update(train=None),
            lambda found: found["splits"].update(other=found["splits"]["train"]), lambda found: found["splits"]["train"].pop("shards"),
            lambda found: found["splits"]["train"].update(num_examples=10**12), lambda found: found["splits"]["train"].update(image_size="x"),
            lambda found: found["splits"]["train"]["shards"][0].update(file="../../etc/passwd"), lambda found: found.update(format=None),
            lambda found: found["splits"]["train"]["shards"][0].update(file="/etc/passwd"), lambda found: found.update(class_names=["a"]),
        ],
    )  # fmt: skip
    def test_a_manifest_whose_digest_is_right(self, directory, change):
        manifest = json.loads((directory / MANIFEST).read_text())
        change(manifest)
        self.rewrite(directory, manifest)
        with pytest.raises(SourceError, match="ingest the images again"):
            load_source(f"records:{directory}")

    @pytest.mark.parametrize(
        ("column", "value"), [("offset", 2**60), ("size", 2**40), ("shard", 7), ("shard", -1), ("offset", -5), ("class", 2**40)]
    )
    def test_an_index_whose_digest_is_right(self, directory, column, value):
        table = pa.parquet.read_table(directory / INDEX)
        place = table.column_names.index(column)
        values = pa.array([value, *table[column].to_pylist()[1:]], table[column].type)
        pa.parquet.write_table(table.set_column(place, table.schema.field(column), values), directory / INDEX)
        self.rewrite(directory, json.loads((directory / MANIFEST).read_text()))
        with pytest.raises(SourceError, match="ingest the images again"):
            load_source(f"records:{directory}")

    def test_a_record_that_unpacks_to_much_is_not_unpacked(self, directory):
        """A record of 64 MB that says that it has 100 bytes, in a shard of 64 KB, with all its checksums."""
        data = struct.pack("<Q", 100) + bytes(2**26)
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)
        manifest = json.loads((directory / MANIFEST).read_text())
        shard = manifest["splits"]["train"]["shards"][0]
        path = directory / shard["file"]
        whole = path.read_bytes()
        table = pa.parquet.read_table(directory / INDEX)
        end = max(offset + size for offset, size in zip(table["offset"].to_pylist(), table["size"].to_pylist(), strict=True))
        path.write_bytes(whole[:end] + packed + whole[end:])
        shard["size"] += len(packed)
        for column, value in (("offset", end), ("size", len(packed)), ("crc32", zlib.crc32(packed))):
            values = pa.array([value, *table[column].to_pylist()[1:]], table[column].type)
            table = table.set_column(table.column_names.index(column), table.schema.field(column), values)
        pa.parquet.write_table(table, directory / INDEX)
        self.rewrite(directory, manifest)
        with pytest.raises(SourceError, match="it has another length than it says"):
            load_source(f"records:{directory}")
